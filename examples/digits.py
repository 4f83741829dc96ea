"""Train a small network on scikit-learn's 1,797 handwritten digits. Kill it, run it again, and it goes on.

    python examples/digits.py --dir /tmp/digits

A step takes the next 32 images and commits a new network, or nothing. So however often it is killed, the
weights at the end are those of a run that nobody disturbed, bit by bit. `digits_torch.py` does it with torch.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import numpy as np
from sklearn.datasets import load_digits

from asyncstep import Graph, MonitoredTrainingSession, StepContext, Variable, hooks, op, source

Network = dict[str, np.ndarray]  # weights by name; they are never changed, but replaced


@dataclass(frozen=True, slots=True)
class Digits:
    """Images of 8 x 8 pixels between 0 and 1, a row each, and the digits that they show."""

    images: np.ndarray
    labels: np.ndarray

    def __getitem__(self, which: slice | list[int] | np.ndarray) -> Digits:
        return Digits(self.images[which], self.labels[which])


@dataclass(frozen=True, slots=True)
class Slope:
    """The loss of a network, and how it grows with each of the weights."""

    loss: float
    gradients: Network


def split_digits(seed: int) -> tuple[Digits, Digits, Digits]:
    """The digits to train with, those that tell when to stop, and those that are looked at once, at the end."""
    images, labels = load_digits(return_X_y=True)
    digits = Digits((images / 16).astype(np.float32), labels)
    digits = digits[np.random.default_rng(seed).permutation(len(labels))]
    return digits[:1257], digits[1257:1437], digits[1437:]


def new_network(seed: int, units: int = 64) -> Network:
    """Small random weights for one hidden layer."""
    random = np.random.default_rng(seed)
    network = {"hidden": random.normal(0, 0.1, (64, units)), "hidden bias": np.zeros(units)}
    network |= {"output": random.normal(0, 0.1, (units, 10)), "output bias": np.zeros(10)}
    return {name: weights.astype(np.float32) for name, weights in network.items()}


def look(network: Network, digits: Digits) -> tuple[np.ndarray, np.ndarray, float]:
    """What the hidden units say to each image, the odds of the ten digits, and the loss."""
    hidden = np.maximum(digits.images @ network["hidden"] + network["hidden bias"], 0)
    scores = hidden @ network["output"] + network["output bias"]
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    odds = powers / powers.sum(axis=1, keepdims=True)
    return hidden, odds, float(-np.log(odds[np.arange(len(odds)), digits.labels]).mean())


@op
def slope_at(network: Network, digits: Digits, batch: list[int]) -> Slope:
    """The loss for some of the digits and its gradients, by backpropagation."""
    some = digits[batch]
    hidden, odds, loss = look(network, some)
    errors = (odds - np.eye(10, dtype=np.float32)[some.labels]) / np.float32(len(batch))
    behind = errors @ network["output"].T * (hidden > 0)
    gradients = {"hidden": some.images.T @ behind, "hidden bias": behind.sum(axis=0)}
    return Slope(loss, gradients | {"output": hidden.T @ errors, "output bias": errors.sum(axis=0)})


@op
def measure(network: Network, digits: Digits) -> dict[str, float]:
    """Loss and accuracy for all of the digits."""
    _, odds, loss = look(network, digits)
    return {"loss": loss, "accuracy": float((odds.argmax(axis=1) == digits.labels).mean())}


def accelerated(velocity: Network, slope: Slope) -> Network:
    """The velocity of each weight after one more slope: gradient descent with momentum."""
    return {name: np.float32(0.9) * velocity[name] - slope.gradients[name] for name in velocity}


def moved(network: Network, velocity: Network) -> Network:
    """The weights a step further."""
    return {name: network[name] + np.float32(0.02) * velocity[name] for name in network}


def table(network: Network, digits: Digits) -> Iterator[str]:
    """How many images of each digit the network knows."""
    seen = look(network, digits)[1].argmax(axis=1)
    yield "\ndigit  images  right  taken for"
    for digit in range(10):
        found = np.bincount(seen[digits.labels == digit], minlength=10)
        wrong = [f"{other} ({times})" for other, times in enumerate(found) if times and other != digit]
        yield f"{digit:>5} {found.sum():>7} {found[digit]:>6}  {', '.join(wrong)}"
    right = seen == digits.labels
    yield f"{'all':>5} {right.size:>7} {right.sum():>6}  {right.mean():.1%} are right"
    weights = b"".join(array.tobytes() for array in network.values())
    yield f"\nThe weights: sha256 {hashlib.sha256(weights).hexdigest()}"


async def train(epochs: int = 60, seed: int = 0, directory: Path | None = None) -> tuple[Network, object]:
    """Train until the validation loss gets no better: the network, and why it ended."""
    training, validation, _ = split_digits(seed)
    with Graph():
        network = Variable(new_network(seed), name="network")
        velocity = Variable(
            {name: 0 * weights for name, weights in new_network(seed).items()}, name="velocity"
        )
        batch = source(range(1257), name="images", batch=32, shuffle=True, seed=seed, repeat=epochs)
        slope = slope_at(network, training, batch)
        loss = op(name="loss")(lambda slope: slope.loss)(slope)
        descend = network.update(moved, velocity.update(accelerated, slope))
        watch = [hooks.SignalHook(), hooks.NanHook(loss), hooks.ProgressHook(40 * epochs, values=[loss])]
        watch += [hooks.EvaluatorHook(measure(network, validation), every_n_steps=40)]
        watch += [hooks.EarlyStoppingHook("eval/loss", patience=5), final := hooks.FinalOpsHook(network)]
        if directory is not None:
            watch += [hooks.SummarySaverHook({"loss": loss}, save_steps=10, output_dir=directory)]
        session = MonitoredTrainingSession(hooks=watch, checkpoint_dir=directory, save_checkpoint_steps=20)

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(descend)

    async with session:
        await session.loop(step)
    return final.final_ops_values, session.stop_reason


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dir", type=Path, help="save checkpoints there, and go on from the newest one")
    parser.add_argument("--epochs", type=int, default=60, help="how often each image is seen at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trained, why = anyio.run(train, args.epochs, args.seed, args.dir, backend=args.backend)
    print(*table(trained, split_digits(args.seed)[2]), f"Ended by {why}", sep="\n")
