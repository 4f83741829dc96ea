"""Contract D3: sources over torchdata's StatefulDataLoader, where torch is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncstep import ChiefSessionCreator, Graph, MonitoredSession, OutOfRangeError, source
from asyncstep.checkpoint import Saver

stateful_dataloader = pytest.importorskip(
    "torchdata.stateful_dataloader",
    reason="torchdata is not installed: torch is 540 MB, and more with what it needs, on the package index",
)

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("default")]


def loader() -> Any:
    """What each process makes anew."""
    return stateful_dataloader.StatefulDataLoader(list(range(100)), batch_size=None)


@pytest.mark.parametrize("prefetch", [0, 3])
async def test_a_stateful_data_loader_goes_on_from_a_checkpoint(prefetch: int, tmp_path: Path) -> None:
    """D3, K4: in however many lives it is read, for however many epochs, it gives what it gives by itself."""
    expected = list(loader()) * 2
    given: list[Any] = []
    ended = False
    while not ended:
        with Graph() as graph:
            number = source(loader(), name="numbers", prefetch=prefetch, repeat=2)
        async with MonitoredSession(ChiefSessionCreator(graph=graph, checkpoint_dir=tmp_path)) as session:
            for _ in range(30):
                try:
                    given.append(int(await session.run_without_hooks(number)))
                except OutOfRangeError:
                    ended = True
                    break
            await Saver().save(session, tmp_path)
    assert given == expected
