"""Course: which of the items that an iterable gives are wanted, and at which positions they are given.

It is told what an iterator gives, in turn, and decides; nothing here waits or reads. So it is the same for
iterables and async iterables, in the event loop and in a worker thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncstep.data.order import shard_size
from asyncstep.data.stream import END_OF_DATA, END_OF_EPOCH, Entry
from asyncstep.errors import FailedPreconditionError

if TYPE_CHECKING:
    from asyncstep.data.epochs import Epochs
    from asyncstep.data.positions import Positions
    from asyncstep.data.settings import Settings

FAR = 100
"""So many items are rather read and dropped than an iterator opened anew behind them."""


class Course:
    """The way through the epochs of an iterable, from the first position that is not finished.

    An *index* counts what the iterator gives in an epoch, a *number* those items of them that are the
    shard's; a position is a number plus the position at which the epoch begins.

    Args:
        name: of the source, for errors.
        finished: from an earlier life of the source; its positions are not given.
        epochs: what is known of their lengths.

    Attributes:
        out: entries to be taken from here; the mark of an epoch that has been read to its
            end comes with (epoch, number of its items).
        epoch, target: the item that is wanted next, by its epoch and index.
        reading, index: the item that the iterator gives next.
        far: whether the iterator has much to give before the wanted item.
        doubtful: whether an iterator that began at the wanted item gave nothing: so the epoch ends there, or
            has become so short that the iterator was opened behind its end.
        over: whether all has been given.
    """

    epoch: int
    target: int
    reading: int
    index: int

    def __init__(
        self,
        name: str,
        settings: Settings,
        finished: Positions,
        epochs: Epochs,
    ) -> None:
        self.out: list[Entry] = []
        self.far: bool = False
        self.over: bool = False
        self.doubtful: bool = False
        self._began = 0
        self._name = name
        self._repeat = settings.repeat
        self._shard = settings.shard
        self._windows = settings.windows(None)
        self._window: list[Any] = []
        self._finished: Positions | None = finished
        self._epochs = epochs
        self.epoch, self._start = epochs.find(finished.low)
        self.reading, self.index = self.epoch, 0
        self.target = self._at = self._number = 0
        self._length = epochs.length(self.epoch)
        if self._repeat is not None and self.epoch >= self._repeat:
            self.over = True
            self.out.append((END_OF_DATA, None))
        else:
            self._aim(finished.low - self._start)

    @property
    def proof(self) -> int:
        """The item that is read again, to see that the epoch is not shorter than it was; see `proof`."""
        return proof(self._number, self._shard)

    def opened(self, epoch: int, index: int) -> None:
        """An iterator stands before this item."""
        self.reading = epoch
        self.index = self._began = index
        self.far = self.doubtful = False
        self._look()

    def accept(self, item: Any) -> None:
        """The iterator has given its next item."""
        if self.index == self._at:
            self._keep(item)
        self.index += 1

    def end(self) -> bool:
        """The iterator has given all items of its epoch; False if it is `doubtful` whether it was in the epoch."""
        if self.reading < self.epoch:
            self._follow()
            self._look()
            return True
        if self.proof < self._began == self.index:
            self.doubtful = True
            return False
        length = shard_size(self.index, self._shard)
        self._check(length)
        if self._window:
            self._give_window()
        self._follow()
        self._leave(length)
        if not self.over:
            self._aim(0)
        return True

    def _follow(self) -> None:
        """The iterator of the next epoch is next."""
        self.reading += 1
        self.index = self._began = 0

    def _keep(self, item: Any) -> None:
        """The item at the target: give it, or put it into the window."""
        number = self._number
        if number == self._length:
            raise self._changed(f"more than {self._length}")
        self._number = number + 1
        if self._windows is None:
            self.out.append((self._start + number, item))
        else:
            self._window.append(item)
            if len(self._window) < self._windows.size:
                self.target = self._at = self._at + self._shard[1]
                return
            self._give_window()
        if self._finished is None:
            self.target = self._at = self._at + self._shard[1]
        else:
            self._aim(number + 1)

    def _give_window(self) -> None:
        """Give the items of the window in their order, but for those that are finished."""
        assert self._windows is not None
        window, self._window = self._window, []
        first = self._number - len(window)
        order = self._windows.permutation(self.epoch, first // self._windows.size, len(window))
        for place in range(len(window)):
            position = self._start + first + place
            if self._finished is None or self._finished.first_open(position) == position:
                self.out.append((position, window[order[place]]))

    def _aim(self, number: int) -> None:
        """Want the item of that number, or the first after it (or of its window) that is not finished."""
        while self._finished is not None:
            position = self._finished.first_open(self._start + number)
            if position > self._finished.end:
                self._finished = None
            if number == self._length:
                break  # all is given: read on, to see that the epoch ends here
            if self._length is None or position < self._start + self._length:
                number = position - self._start
                break
            if number:  # its rest is finished: read on, to see that it has not changed
                number = self._length
                break
            self._leave(self._length)
            if self.over:
                return
            number = 0
        if self._windows is not None:
            number -= number % self._windows.size
        self._number = number
        self.target = number * self._shard[1] + self._shard[0]
        self._look()
        self.far = self.reading < self.epoch or self.target - self.index > FAR

    def _look(self) -> None:
        self._at = self.target if self.reading == self.epoch else -1

    def _leave(self, length: int) -> None:
        """Go on to the next epoch, if there is one; an empty one ends the data, lest it be read for ever."""
        self.over = length == 0 or (self._repeat is not None and self.epoch + 1 >= self._repeat)
        self.out.append((END_OF_DATA if self.over else END_OF_EPOCH, (self.epoch, length)))
        self.epoch += 1
        self._start += length
        self._length = self._epochs.length(self.epoch)

    def _check(self, length: int) -> None:
        """An epoch must have as many items as it is known to have had."""
        if self._length is not None:
            if length != self._length:
                raise self._changed(str(length))
        elif length < self._number or (
            self._finished is not None and self._start + length < self._finished.end
        ):
            raise self._changed(f"{'only' if self.index > self._began else 'at most'} {length}")

    def _changed(self, found: str) -> FailedPreconditionError:
        known = self._length
        if known is None:
            known = max(self._number, 0 if self._finished is None else self._finished.end - self._start)
        return FailedPreconditionError(
            f"the items of the source {self._name!r} have changed: epoch {self.epoch} had"
            f" {'' if self._length is not None else 'at least '}{known} items when it was read before, and now"
            f" has {found}, so the positions that are saved mean other items. Give it the items that it had, or"
            " another name to begin at its first item"
        )


def proof(number: int, shard: tuple[int, int]) -> int:
    """The index of the item before that of a number, or of that itself if it is the first.

    An iterator that begins behind the end of its epoch gives nothing, as one does that begins at the end. So
    reading is begun no later than here where that costs nothing; the item must be there still.
    """
    first, count = shard
    return max(number - 1, 0) * count + first
