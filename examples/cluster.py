"""Which model knows the handwritten digits best? Programs on many machines cross-validate them, each model once.

    python examples/cluster.py --workers 2 --dir /tmp/models
    python examples/cluster.py --workers 64 --cluster tcp://scheduler:8786 --dir s3://bucket/models

A step takes the next model and commits its score. With any number of workers the table is the same.
"""

from __future__ import annotations

import argparse
import logging
import operator
from functools import partial
from time import perf_counter
from typing import Any

from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from asyncstep import Graph, MonitoredTrainingSession, StepContext, Variable, op, source
from asyncstep.distributed import TaskInfo, launch
from asyncstep.hooks import FinalOpsHook, ProgressHook

Choice = tuple[str, float]
Scores = dict[Choice, float]
MODELS = {
    "support vectors, C =": lambda value: SVC(C=value),
    "random forest, trees": lambda value: RandomForestClassifier(int(value), random_state=0),
    "extra trees, trees": lambda value: ExtraTreesClassifier(int(value), random_state=0),
}
VALUES = {name: range(50, 350, 50) for name in MODELS} | {"support vectors, C =": [0.1, 0.3, 1, 3, 10, 30]}


@op(offload="thread")  # the chief has to answer the other programs meanwhile
def validate(choice: Choice, folds: int) -> Scores:
    """The accuracy of one model, on one processor."""
    images, labels = load_digits(return_X_y=True)
    with threadpool_limits(1):
        return {choice: float(cross_val_score(MODELS[choice[0]](choice[1]), images, labels, cv=folds).mean())}


async def program(args: argparse.Namespace, task: TaskInfo) -> Any:
    """What each of the workers runs; index 0 is the chief, which has the state and saves it."""
    choices = [(name, float(value)) for name in MODELS for value in VALUES[name]][: args.models]
    with Graph():
        scores = Variable[Scores]({}, name="scores")
        kept = scores.update(
            operator.or_, validate(source(choices, name="choices", shuffle=True), args.folds)
        )
        session = MonitoredTrainingSession(
            task.master,
            is_chief=task.is_chief,
            checkpoint_dir=args.dir,
            save_checkpoint_secs=1,
            chief_only_hooks=[ProgressHook(len(choices)), final := FinalOpsHook(scores)],
        )

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(kept)

    async with session:
        await session.loop(step)
    return final.final_ops_values


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="how many programs take models")
    parser.add_argument(
        "--cluster", help="the address of a Dask scheduler (default: processes of this machine)"
    )
    parser.add_argument("--dir", help="save checkpoints there, and go on from the newest one")
    parser.add_argument("--models", type=int, help="how many (default: all)")
    parser.add_argument("--folds", type=int, default=5, help="how often each model is trained")
    parser.add_argument("--backend", default="asyncio", help="asyncio, uvloop or trio")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    began = perf_counter()
    scores, *_ = launch(partial(program, args), args.cluster, workers=args.workers, backend=args.backend)
    for (name, value), score in sorted(scores.items(), key=lambda item: (-item[1], item[0])):
        print(f"{name:>24} {value:<6g} {score:.1%}")
    print(f"{len(scores)} models in {perf_counter() - began:.1f} s by {args.workers} workers")
