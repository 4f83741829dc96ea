"""The types of the standard library that every checkpoint can hold."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter, OrderedDict, deque
from decimal import Decimal
from fractions import Fraction
from zoneinfo import ZoneInfo

from asyncstep.checkpoint.registry import register
from asyncstep.errors import InvalidArgumentError


def _date(value: dt.date) -> tuple[int, ...]:
    return value.year, value.month, value.day


def _time(value: dt.time | dt.datetime) -> tuple[object, ...]:
    return value.hour, value.minute, value.second, value.microsecond, value.tzinfo, value.fold


def _datetime(value: dt.datetime) -> tuple[object, ...]:
    return _date(value) + _time(value)


def _new_datetime(parts: tuple[object, ...]) -> dt.datetime:
    *when, fold = parts
    return dt.datetime(*when, fold=fold)  # type: ignore[arg-type]


def _new_time(parts: tuple[object, ...]) -> dt.time:
    *when, fold = parts
    return dt.time(*when, fold=fold)  # type: ignore[arg-type]


def _zone_key(zone: ZoneInfo) -> str:
    if zone.key is None:
        raise InvalidArgumentError("there is a ZoneInfo without a key; make it by ZoneInfo(key)")
    return zone.key


def _offset(zone: dt.timezone) -> tuple[dt.timedelta, str | None]:
    args: tuple[dt.timedelta, str] | tuple[dt.timedelta] = zone.__getinitargs__()  # type: ignore[attr-defined]
    return args[0], args[1] if len(args) > 1 else None


def _new_offset(parts: tuple[dt.timedelta, str | None]) -> dt.timezone:
    offset, name = parts
    return dt.timezone(offset) if name is None else dt.timezone(offset, name)


register(complex, to_plain=lambda value: (value.real, value.imag), from_plain=lambda parts: complex(*parts))
register(bytearray, to_plain=bytes, from_plain=bytearray)
register(
    range,
    to_plain=lambda value: (value.start, value.stop, value.step),
    from_plain=lambda parts: range(*parts),
)
register(Decimal, to_plain=str, from_plain=Decimal)
register(Fraction, to_plain=Fraction.as_integer_ratio, from_plain=lambda parts: Fraction(*parts))
register(uuid.UUID, to_plain=lambda value: value.bytes, from_plain=lambda value: uuid.UUID(bytes=value))
register(Counter, to_plain=dict, from_plain=Counter)
register(OrderedDict, to_plain=dict, from_plain=OrderedDict)
register(deque, to_plain=lambda value: (list(value), value.maxlen), from_plain=lambda parts: deque(*parts))
register(dt.date, to_plain=_date, from_plain=lambda parts: dt.date(*parts))
register(dt.time, to_plain=_time, from_plain=_new_time)
register(dt.datetime, to_plain=_datetime, from_plain=_new_datetime)
register(
    dt.timedelta,
    to_plain=lambda value: (value.days, value.seconds, value.microseconds),
    from_plain=lambda parts: dt.timedelta(*parts),
)
register(dt.timezone, to_plain=_offset, from_plain=_new_offset)
register(ZoneInfo, to_plain=_zone_key, from_plain=ZoneInfo)
