"""Outbox: what one session of a worker sends to its chief."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from asyncstep.distributed.link import ChiefGoneError
from asyncstep.distributed.messages import Undo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anyio.abc import TaskGroup

    from asyncstep.distributed.link import Link, Seat
    from asyncstep.distributed.messages import Answer


class Outbox:
    """Messages to one seat: those whose sender waits for the answer, and those that are posted.

    What is posted is sent whatever becomes of the task that has posted it.

    Args:
        link: to the chief.
        seat: where the chief is.
        heard: is called with each answer before anybody else has it.

    Attributes:
        group: the task group of the program, in which what is posted is sent.
    """

    __slots__ = ("_heard", "_link", "_posts", "_seat", "group")

    def __init__(self, link: Link, seat: Seat, heard: Callable[[Answer], None]) -> None:
        self._link = link
        self._seat = seat
        self._heard = heard
        self._posts: dict[Post, None] = {}  # those that are on their way, in order
        self.group: TaskGroup = link.group

    async def ask(self, message: Any) -> Any:
        """The answer to a message, as soon as all that was given back before has arrived.

        ChiefGoneError: the seat has been left, lost or taken. Checkpoint: always; a cancellation drops the answer.
        """
        if self._posts:
            await self._wait_for(post for post in self._posts if post.gives_back is not None)
        answer: Answer = await self._link.call(self._seat, message)
        self._heard(answer)
        return answer.reply

    def post(self, message: Any) -> Post:
        """Send a message; nobody has to wait for that."""
        post = Post(message)
        self._posts[post] = None
        self.group.start_soon(self._deliver, message, post, name=f"{type(message).__name__} to the chief")
        return post

    async def _deliver(self, message: Any, post: Post) -> None:  # noqa: ASYNC910 - `call` is one, if it raises, too
        try:
            answer: Answer = await self._link.call(self._seat, message)
        except ChiefGoneError as error:
            post.error = error
        else:
            post.reply = answer.reply
            self._heard(answer)
        finally:
            if post.reply is None and post.error is None:
                post.error = ChiefGoneError("the program has been cancelled")
            self._posts.pop(post, None)
            post.ended.set()

    async def flushed(self) -> None:  # noqa: ASYNC910 - it waits if there is something to wait for
        """Wait until the chief has what was posted so far. Checkpoint: if something has not arrived."""
        await self._wait_for(self._posts)

    async def _wait_for(self, posts: Iterable[Post]) -> None:  # noqa: ASYNC910 - as `flushed`
        for post in list(posts):
            await post.ended.wait()

    def giving_back(self) -> list[int]:
        """The numbers of the steps that give something back of which the chief may not know yet."""
        return [post.gives_back for post in self._posts if post.gives_back is not None]


class Post:
    """A message that is sent whatever becomes of who sends it.

    Attributes:
        gives_back: the number of the step that gives something back by it; None if it is no such message.
        ended: set when it is answered, or cannot be.
        reply, error: one of them is there then.
    """

    __slots__ = ("ended", "error", "gives_back", "reply")

    def __init__(self, message: Any) -> None:
        self.gives_back: int | None = message.step if isinstance(message, Undo) else None
        self.ended: anyio.Event = anyio.Event()
        self.reply: Any = None
        self.error: BaseException | None = None

    async def settled(self) -> BaseException | None:
        """Wait for the answer, come what may; return the cancellation or interrupt that came. Checkpoint: always."""
        interruption: BaseException | None = None
        with anyio.CancelScope(shield=True):
            while not self.ended.is_set():
                try:
                    await self.ended.wait()
                except BaseException as error:  # noqa: ASYNC103 - a native cancel; the caller raises it
                    interruption = interruption or error
        try:
            return interruption  # noqa: ASYNC910 - it has waited
        finally:
            del interruption
