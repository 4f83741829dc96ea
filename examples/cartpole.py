"""Learn to balance gymnasium's CartPole by the cross-entropy method, with many workers playing at a time.

    python examples/cartpole.py --workers 4 --dir /tmp/cartpole

Each step draws weights around the best ones so far, plays a few episodes with them and commits what they
returned; after fifty such trials the distribution moves to the best ten. It is learned when fifty in a row return
475 on average. One worker and one seed give one result, and killed at any instant it goes on to the same.
"""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import gymnasium
import numpy as np

from asyncstep import Graph, MonitoredTrainingSession, StepContext, Variable, hooks, op, source
from asyncstep.checkpoint import register

TRIALS, ELITE = 50, 10  # of a generation; the best of those
SPREAD = 0.25  # added to the deviation, less of it each time, so that the search does not narrow too soon


@register(name="cartpole.Trial")
@dataclass(frozen=True, slots=True)
class Trial:
    """Weights to be tried, and what their episodes returned on average once they are played."""

    number: int
    weights: np.ndarray
    mean_return: float = 0.0


@register(name="cartpole.Generation")
@dataclass(frozen=True, slots=True)
class Generation:
    """What fifty trials returned, and how far apart their weights were drawn."""

    mean_return: float
    best_return: float
    deviation: float


@register(name="cartpole.Search")
@dataclass(frozen=True, slots=True)
class Search:
    """The distribution of weights, the trials of this generation so far, and the generations before."""

    center: np.ndarray
    deviation: np.ndarray
    trials: tuple[Trial, ...] = ()
    generations: tuple[Generation, ...] = ()


@functools.cache
def cart_pole() -> gymnasium.Env[np.ndarray, int]:
    """This process's own environment."""
    return gymnasium.make("CartPole-v1")


def balance(weights: np.ndarray, seed: int) -> float:
    """Play one episode: push to the right whenever the weighted state is positive."""
    environment, total, over = cart_pole(), 0.0, False
    state, _ = environment.reset(seed=seed)
    while not over:
        state, reward, fallen, late, _ = environment.step(int(state @ weights > 0))
        total, over = total + float(reward), fallen or late
    return total


def draw(search: Search, number: int, seed: int) -> Trial:
    """The trial of that number; all that is random in it comes from the seed and the number."""
    random = np.random.default_rng([seed, number])
    return Trial(number, search.center + search.deviation * random.normal(size=4))


def play(trial: Trial, episodes: int) -> Trial:
    """The trial, played."""
    total = sum(balance(trial.weights, trial.number * episodes + each) for each in range(episodes))
    return replace(trial, mean_return=total / episodes)


def learn(search: Search, trial: Trial) -> Search:
    """The search with one more trial; the last of a generation moves the distribution."""
    trials = (*search.trials, trial)
    if len(trials) < TRIALS:
        return replace(search, trials=trials)
    ranked = sorted(trials, key=lambda trial: (-trial.mean_return, trial.number))
    returned = [trial.mean_return for trial in ranked]
    past = Generation(float(np.mean(returned)), returned[0], float(search.deviation.mean()))
    elite = np.array([trial.weights for trial in ranked[:ELITE]])
    deviation = elite.std(axis=0) + SPREAD / (1 + len(search.generations))
    return Search(elite.mean(axis=0), deviation, generations=(*search.generations, past))


def table(search: Search) -> Iterator[str]:
    """The generations, and how the last distribution's center does in episodes of its own."""
    yield "\ngeneration  mean return  best  deviation"
    for number, past in enumerate(search.generations, 1):
        yield f"{number:>10} {past.mean_return:>12.1f} {past.best_return:>5.0f} {past.deviation:>10.3f}"
    tested = [balance(search.center, 1_000_000 + number) for number in range(100)]
    yield f"\nThe center {search.center.round(3).tolist()} returns {np.mean(tested):.1f} in 100 other episodes."


async def learn_to_balance(
    workers: int = 1, seed: int = 0, directory: Path | None = None, episodes: int = 4, goal: float = 475
) -> tuple[Search, object]:
    """Play until a generation reaches the goal: the search, and why it ended."""
    with Graph():
        search = Variable(Search(np.zeros(4), np.ones(4)), name="search")
        trial = op(draw)(search, source(range(5000), name="trials"), seed)
        plays = op(offload="process")(play) if workers > 1 else op(play)  # one alone needs no second process
        learned = search.update(learn, plays(trial, episodes))
        done = {"generations": op(lambda search: len(search.generations))(search)}
        watch = [hooks.SignalHook(), hooks.ProgressHook(values=done), final := hooks.FinalOpsHook(search)]
        session = MonitoredTrainingSession(hooks=watch, checkpoint_dir=directory, save_checkpoint_secs=1)

    async def step(ctx: StepContext) -> None:
        past = (await ctx.session.run(search)).generations
        if past and past[-1].mean_return >= goal:
            ctx.request_stop(f"the mean return has reached {goal:g}")
        await ctx.run_with_hooks(learned)

    async with session:
        await session.loop(step, workers=workers)
    return final.final_ops_values, session.stop_reason


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dir", type=Path, help="save checkpoints there, and go on from the newest one")
    parser.add_argument(
        "--workers", type=int, default=1, help="trials at a time, each in a process of its own"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    found, why = anyio.run(learn_to_balance, args.workers, args.seed, args.dir, backend=args.backend)
    print(*table(found), f"Ended by {why}", sep="\n")
