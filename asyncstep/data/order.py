"""In which order items are given: pure functions of (seed, epoch, place), so that any of it can be jumped to.

Nothing is drawn from a generator of random numbers, whose state would have to be saved, and whose numbers
may differ from one version of Python to the next. A permutation is computed item by item from its key
(contract D3).
"""

from __future__ import annotations

from hashlib import sha512
from struct import unpack

_MASK = (1 << 64) - 1
_ONE, _OTHER = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9  # odd, so that multiplying by them loses nothing


class Permutation:
    """A permutation of ``range(length)``: for a key the same on every machine, in every version of Python.

    It takes no memory, and no time to set up, whatever its length. It is a keyed Feistel network on the
    smallest power of two that has room for `length` numbers (but at least 64, below which the network is
    too small to mix); a number that comes out too large is sent through again, until it fits.

    Args:
        length: how many numbers are permuted.
        key: integers; each other key gives another permutation.
    """

    __slots__ = ("_bits", "_keys", "_left", "_length", "_right")

    def __init__(self, length: int, *key: int) -> None:
        bits = max(6, (length - 1).bit_length())
        self._length = length
        self._bits = bits // 2
        self._right = (1 << self._bits) - 1
        self._left = (1 << (bits - self._bits)) - 1
        digest = sha512(":".join(format(part, "x") for part in key).encode()).digest()
        rounds = unpack("<8Q", digest)
        self._keys = tuple(zip(rounds[::2], rounds[1::2], strict=True))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        """The number at a place."""
        if not 0 <= index < self._length:
            raise IndexError(f"a permutation of {self._length} numbers has none at {index}")
        bits, left_mask, right_mask, keys = self._bits, self._left, self._right, self._keys
        while True:
            left, right = index >> bits, index & right_mask
            for one, other in keys:
                mixed = (right ^ one) * _ONE & _MASK
                left ^= ((mixed ^ mixed >> 32) * _OTHER & _MASK) >> 32 & left_mask
                mixed = (left ^ other) * _ONE & _MASK
                right ^= ((mixed ^ mixed >> 32) * _OTHER & _MASK) >> 32 & right_mask
            index = left << bits | right
            if index < self._length:
                return index


class Windows:
    """The order inside consecutive windows of an epoch; each window of each epoch has a permutation of its own.

    Args:
        size: of a window, in items.
        seed: another one gives other permutations.
    """

    __slots__ = ("_key", "_last", "seed", "size")

    def __init__(self, size: int, seed: int) -> None:
        self.size: int = size
        self.seed: int = seed
        self._key: tuple[int, int, int] | None = None
        self._last = Permutation(0)

    def permutation(self, epoch: int, number: int, length: int) -> Permutation:
        """The permutation of the window of that number, which has `length` items (the last one may be short)."""
        if self._key != (epoch, number, length):
            self._key = (epoch, number, length)
            self._last = Permutation(length, self.seed, epoch, number)
        return self._last


class SequenceOrder:
    """Which item of a sequence is the n-th that one shard is given in an epoch.

    The shards share the order of the whole sequence: of every `count` items in it, each shard is given one.
    So they are disjoint, cover everything, and with a shuffle differ from epoch to epoch.

    Args:
        length: of the sequence.
        windows: how it is shuffled; None for not at all.
        shard: (index, count).

    Attributes:
        size: how many items an epoch of the shard has.
    """

    __slots__ = ("_count", "_first", "_length", "_windows", "size")

    def __init__(self, length: int, windows: Windows | None, shard: tuple[int, int]) -> None:
        self._length = length
        self._windows = windows
        self._first, self._count = shard
        self.size: int = shard_size(length, shard)

    def index(self, epoch: int, number: int) -> int:
        """The index in the sequence of the item of that number, from 0, in an epoch of the shard."""
        place = number * self._count + self._first
        windows = self._windows
        if windows is None:
            return place
        window, offset = divmod(place, windows.size)
        start = window * windows.size
        return start + windows.permutation(epoch, window, min(windows.size, self._length - start))[offset]


def shard_size(length: int, shard: tuple[int, int]) -> int:
    """How many of `length` items a shard has: every `count`-th, beginning with that of its own index."""
    first, count = shard
    return max(0, -((first - length) // count))
