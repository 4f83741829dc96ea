"""Settings: what a source was told to do with its items, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asyncstep.data.order import Windows
from asyncstep.errors import FailedPreconditionError, InvalidArgumentError


@dataclass(frozen=True, slots=True)
class Settings:
    """The parameters of `source`, by their names there; `shuffle` is never False, `shard` never None."""

    batch: int | None
    drop_remainder: bool
    prefetch: int
    shuffle: int | bool | None
    seed: int
    repeat: int | None
    shard: tuple[int, int]

    def windows(self, length: int | None) -> Windows | None:
        """How items are shuffled, of which there are `length` in an epoch; None for not at all."""
        size = length if self.shuffle is True else self.shuffle
        return Windows(size, self.seed) if size else None

    def saved(self) -> dict[str, Any]:
        """What the meaning of a position, or the batch that it is in, depends on."""
        return {
            "batch": self.batch,
            "drop_remainder": self.drop_remainder,
            "shuffle": self.shuffle,
            "seed": self.seed if self.shuffle else None,
            "shard": list(self.shard),
        }

    def check_saved(self, saved: dict[str, Any], name: str) -> None:
        """Raise FailedPreconditionError if positions saved with other settings mean something else now."""
        now = self.saved()
        changed = [each for each in now if now[each] != saved[each]]
        if changed:
            raise FailedPreconditionError(
                f"the source {name!r} was saved with {_listed(saved, changed)}, and has {_listed(now, changed)}:"
                " its saved positions would mean other items. Give it the saved values, or another name to begin"
                " at its first item"
            )


def _listed(values: dict[str, Any], names: list[str]) -> str:
    return ", ".join(f"{each}={values[each]!r}" for each in names)


def checked_settings(
    name: str,
    *,
    batch: Any,
    drop_remainder: Any,
    prefetch: Any,
    shuffle: Any,
    seed: Any,
    repeat: Any,
    shard: Any,
) -> Settings:
    """The settings of the source of that name; InvalidArgumentError says what is wrong with one."""
    for what, number in (("batch", batch), ("repeat", repeat)):
        if number is not None and not _is_int(number, 1):
            raise _refused(name, what, number, "must be at least 1, or None")
    if drop_remainder and batch is None:
        raise InvalidArgumentError(f"drop_remainder of the source {name!r} needs a batch")
    if not _is_int(prefetch, 0):
        raise _refused(name, "prefetch", prefetch, "must be a number of items of at least 0")
    if shuffle is not None and not isinstance(shuffle, bool) and not _is_int(shuffle, 1):
        raise _refused(name, "shuffle", shuffle, "must be True, or the size of a window of at least 1")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise _refused(name, "seed", seed, "must be an int")
    return Settings(
        batch, bool(drop_remainder), prefetch, shuffle or None, seed, repeat, _checked_shard(name, shard)
    )


def _checked_shard(name: str, shard: Any) -> tuple[int, int]:
    if shard is None:
        return 0, 1
    try:
        index, count = shard
        if _is_int(index, 0) and _is_int(count, index + 1):
            return index, count
    except (TypeError, ValueError):
        pass
    raise _refused(name, "shard", shard, "must be (index, count) with 0 <= index < count")


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _refused(name: str, what: str, value: object, rule: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{what} of the source {name!r} {rule}, not {value!r}")
