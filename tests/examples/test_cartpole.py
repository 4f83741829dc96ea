"""examples/cartpole.py: it learns; one worker and a seed give one result, with kills or without."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import asyncstep
from asyncstep.hooks import StopAtStepHook

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

pytest.importorskip("gymnasium", reason="CartPole is gymnasium's")


@pytest.fixture
def cartpole(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program, as a module that worker processes can import, too."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("cartpole")


def returns(search: Any) -> list[float]:
    """The mean returns of the generations."""
    return [past.mean_return for past in search.generations]


@pytest.mark.anyio
async def test_one_worker_and_a_seed_give_one_result(
    cartpole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K4: stopped in the middle of a generation and resumed, the search is that of a run that was not."""
    whole, reason = await cartpole.learn_to_balance(episodes=1, goal=120)
    assert reason.message == "the mean return has reached 120"
    assert returns(whole)[-1] >= 120 > max(returns(whole)[:-1])
    assert whole.trials == ()  # not one trial more
    plain = asyncstep.MonitoredTrainingSession

    def stopped(*, hooks: Any, **options: Any) -> Any:
        return plain(hooks=[*hooks, StopAtStepHook(num_steps=30)], **options)

    monkeypatch.setattr(cartpole, "MonitoredTrainingSession", stopped)
    part, _ = await cartpole.learn_to_balance(directory=tmp_path, episodes=1, goal=120)
    assert [trial.number for trial in part.trials] == list(range(30))
    monkeypatch.undo()
    resumed, _ = await cartpole.learn_to_balance(directory=tmp_path, episodes=1, goal=120)
    assert returns(resumed) == returns(whole)
    assert resumed.center.tobytes() == whole.center.tobytes()


@pytest.mark.anyio
async def test_workers_play_in_processes(cartpole: Any) -> None:
    """Two workers, each with a process: no trial is lost and none is counted twice."""
    search, reason = await cartpole.learn_to_balance(workers=2, episodes=1, goal=30)
    assert reason.message == "the mean return has reached 30"
    assert returns(search)[0] >= 30
    numbers = [trial.number for trial in search.trials]
    assert len(set(numbers)) == len(numbers) <= 1  # the other worker's trial, which was under way


def test_the_table_shows_each_generation(cartpole: Any) -> None:
    """With what the last center returns in 100 other episodes: a balanced pole returns 500 in each."""
    weights = cartpole.np.array([0.25, 1.342, 3.43, 1.461])
    search = cartpole.Search(weights, weights, generations=(cartpole.Generation(480.0, 500.0, 0.5),))
    _, generation, end = cartpole.table(search)
    assert generation.split() == ["1", "480.0", "500", "0.500"]
    assert end.endswith("returns 500.0 in 100 other episodes.")
