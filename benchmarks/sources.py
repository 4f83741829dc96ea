"""P10: what an item of a source costs that is read ahead, against a memory object stream by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import anyio
import anyio.lowlevel

import asyncstep as a
from benchmarks.measure import Figure, interleaved

ITEMS, BATCH, PREFETCH = 100_000, 64, 64


def produced() -> Iterator[int]:
    """The items, from an iterable."""
    yield from range(ITEMS)


async def produced_async() -> AsyncIterator[int]:
    """The items, from an async iterable that does not wait."""
    for number in range(ITEMS):
        yield number


async def work(batch: list[int]) -> int:
    """The one op: it gives the event loop a turn, as anything that waits does."""
    await anyio.lowlevel.checkpoint()
    return len(batch)


async def by_hand() -> None:
    """A producer, a memory object stream, and a consumer that collects batches."""
    send, receive = anyio.create_memory_object_stream[int](PREFETCH)

    async def produce() -> None:
        async with send:
            async for item in produced_async():
                await send.send(item)

    done = 0
    async with anyio.create_task_group() as group, receive:
        group.start_soon(produce)
        batch: list[int] = []
        async for item in receive:
            batch.append(item)
            if len(batch) == BATCH:
                done += await work(batch)
                batch = []
        done += await work(batch)
    assert done == ITEMS


async def measure(backend: str) -> list[Figure]:
    """The figures of one backend."""
    kinds: list[tuple[str, Any]] = [
        ("P10 async iterable", produced_async),
        ("P10 iterable", produced),
        ("P10 sequence", range(ITEMS)),
    ]
    return [await _compared(subject, backend, items) for subject, items in kinds]


async def _compared(subject: str, backend: str, items: Iterable[int]) -> Figure:
    with a.Graph() as graph:
        done = a.op(work)(a.source(items, name="numbers", batch=BATCH, prefetch=PREFETCH))

    async def sourced() -> None:
        async with (
            anyio.create_task_group() as group,
            a.MonitoredSession(a.ChiefSessionCreator(graph=graph), task_group=group) as session,
        ):
            while not session.should_stop():
                await session.run(done)
        assert session.stop_reason is not None
        assert session.stop_reason.kind is a.StopKind.END_OF_DATA

    return Figure(subject, backend, "item", *await interleaved(by_hand, sourced, ITEMS), 2.0)
