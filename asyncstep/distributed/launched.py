"""LaunchedJob: the programs of one launch as tasks of Dask; all of it runs in the event loop of the Dask client."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from distributed.scheduler import KilledWorker

from asyncstep.distributed.job import Refusal
from asyncstep.distributed.line import PATIENCE, PAUSE
from asyncstep.distributed.outcome import Cancelled, Failed, load_outcome
from asyncstep.distributed.registry import KEYS, PROTOCOL, new_registry
from asyncstep.distributed.runner import run_program
from asyncstep.distributed.task import TaskInfo
from asyncstep.errors import FailedPreconditionError, UnavailableError

if TYPE_CHECKING:
    from distributed import Client, Future

    from asyncstep.distributed.outcome import Outcome

MAX_UNSTARTED = 3
"""How often Dask may give a task up of which no program was seen to start."""


class LaunchedJob:
    """A job, from its start to its end.

    Args:
        client: the Dask client, which is open.
        program: the async function, pickled.
        name: the function's name.
        workers: how many programs there are.
        backend: which event loop they run in.
        lease: seconds after which a program that was not heard of is taken for lost.
    """

    def __init__(
        self, client: Client, program: bytes, name: str, *, workers: int, backend: str, lease: float
    ) -> None:
        self._client = client
        self._program = program
        self._name = name
        self._token = token_hex(4)
        self._job = f"{name}-{self._token}"
        self._workers = workers
        self._backend = backend
        self._lease = lease
        self._futures: dict[int, Future] = {}
        self._version = -1
        self._created = asyncio.Event()

    async def run(self) -> list[Outcome]:
        """Start the programs, and wait for their ends; how each has ended, by index.

        Raises:
            FailedPreconditionError: the cluster is not fit for it.
            UnavailableError: the scheduler is gone.
        """
        try:
            addresses = await self._create()
        finally:
            self._created.set()
        follow = asyncio.create_task(self._follow())
        programs: asyncio.Future[list[Outcome]] = asyncio.gather(
            *(self._see_through(index, addresses[index % len(addresses)]) for index in range(self._workers))
        )
        try:
            either: set[asyncio.Future[Any]] = {follow, programs}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not programs.done():
                follow.result()  # raises: without the scheduler nothing is heard of the programs
            return programs.result()
        finally:
            follow.cancel()
            programs.cancel()
            ends = await asyncio.gather(follow, programs, return_exceptions=True)
            if not any(isinstance(end, UnavailableError) for end in ends):
                await self._forget()

    async def stop(self, kind: str, message: str, origin: str) -> None:
        """Have the sessions of all programs stop."""
        await self._created.wait()
        await self._ask("stop", kind=kind, message=message, origin=origin)

    async def cancel(self) -> None:
        """Have all programs cancelled, and no other started."""
        await self._created.wait()
        await self._ask("cancel")

    async def _create(self) -> list[list[str] | None]:
        """Have a job in the registry; the Dask workers that the programs are given to, in turns."""
        try:
            await self._client.register_plugin(new_registry())
        except ModuleNotFoundError as error:
            raise FailedPreconditionError(
                f"the scheduler at {self._address} has no module {error.name}; install asyncstep[dask] there, and on"
                " every worker of the cluster, in the version that is used here"
            ) from error
        answer = await self._client.scheduler.asyncstep(
            call="create",
            job=self._job,
            protocol=PROTOCOL,
            workers=self._workers,
            lease=self._lease,
            client=self._client.id,
        )
        if answer["protocol"] != PROTOCOL:
            raise FailedPreconditionError(
                f"the scheduler at {self._address} has another version of asyncstep: install the same one there and"
                " here, and start the scheduler again"
            )
        return [[address] for address in answer["threads"]] or [None]

    async def _see_through(self, index: int, address: list[str] | None) -> Outcome:
        """Run a program until it has ended, started again as often as that is worth it."""
        where = f"the program of worker {index} of {self._workers}"
        task = TaskInfo(f"{self._address}/{self._job}", index, self._workers)
        starts = unstarted = rounds = 0
        while True:
            rounds += 1
            future = self._futures[index] = self._client.submit(
                run_program,
                self._program,
                self._job,
                task,
                self._backend,
                key=f"{KEYS}{self._name}-{index}-{self._token}" + (f"-{rounds}" if rounds > 1 else ""),
                workers=address,
                allow_other_workers=address is not None,
                pure=False,
            )
            try:
                return load_outcome(await self._client.gather(future), where)
            except KilledWorker as error:
                address = None  # who was there at first may be gone by now
                before, starts = starts, (await self._ask("count_starts", index=index))["starts"]
                unstarted = unstarted + 1 if starts == before else 0
                if unstarted == MAX_UNSTARTED:
                    return Failed(UnavailableError(f"{where} cannot be started: {error}"))
            except CancelledError as error:
                if getattr(error, "reason", None) == "scheduler-connection-lost":
                    raise self._scheduler_lost(error) from error
                return Cancelled()
            except ModuleNotFoundError as error:
                return Failed(
                    FailedPreconditionError(
                        f"a Dask worker has no module {error.name}, which {where} needs; install asyncstep[dask] and"
                        " all that the program imports on every worker of the cluster"
                    )
                )
            except Exception as error:
                return Failed(error)
            finally:
                future.release()
                del self._futures[index]

    async def _follow(self) -> None:
        """Hear of the job for as long as there is a scheduler. A cancelled job's tasks that run no program end here.

        Raises:
            UnavailableError: the scheduler is gone.
        """
        over = False
        while True:
            longest = self._lease / 3 + max(self._lease, PATIENCE)
            try:
                view = (await asyncio.wait_for(self._ask("follow", seen=self._version), longest))["view"]
            except OSError as error:
                try:
                    view = (await asyncio.wait_for(self._follow_again(), PATIENCE))["view"]
                except TimeoutError:
                    raise self._scheduler_lost(error) from error
            self._version = view["version"]
            if view["cancelled"] and not view["lives"]:
                # What a program has returned or raised at its end is on its way, and no later than the next view.
                ending = set() if over else set(view["done"])
                late = [future for index, future in self._futures.items() if index not in ending]
                await self._client.cancel(late, force=True)
                over = True

    async def _follow_again(self) -> dict[str, Any]:
        while True:
            try:
                return await self._ask("follow", seen=-1)
            except OSError:
                await asyncio.sleep(PAUSE)

    async def _forget(self) -> None:
        try:
            await asyncio.wait_for(self._ask("forget"), PATIENCE)
        except (OSError, UnavailableError):
            pass  # the registry is gone, with the job

    async def _ask(self, call: str, **args: Any) -> dict[str, Any]:
        answer = await self._client.scheduler.asyncstep(call=call, job=self._job, **args)
        if answer is None or "refused" in answer:
            raise UnavailableError(
                f"the scheduler at {self._address} has lost the job {self._job}: {Refusal.NO_JOB}"
            )
        return answer  # type: ignore[no-any-return]

    @property
    def _address(self) -> str:
        return str(self._client.scheduler.address)

    def _scheduler_lost(self, error: BaseException) -> UnavailableError:
        return UnavailableError(
            f"the scheduler at {self._address} is gone, and the job {self._job} with it: {error!r}"
        )
