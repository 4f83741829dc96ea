"""`digits.py` with torch; the checkpoints hold the module and the optimizer: digits_torch.py DIRECTORY."""

import sys

import anyio
import torch
from sklearn.datasets import load_digits

from asyncstep import Graph, MonitoredTrainingSession, StepContext, hooks, op, source

torch.manual_seed(0)
torch.set_num_threads(1)  # more would only wait for each other over so small a model
order = torch.randperm(1797)
images, labels = (torch.tensor(part)[order] for part in load_digits(return_X_y=True))
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).double()
optimizer = torch.optim.Adam(model.parameters())


@op
def descend(batch: list[int]) -> float:
    """Change the model for the better; the loss before that."""
    loss = torch.nn.functional.cross_entropy(model(images[batch] / 16), labels[batch])
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return float(loss.detach())


async def main(directory: str) -> None:
    """Train, going on from the newest checkpoint in the directory."""
    with Graph() as graph:
        graph.track("model", model)
        graph.track("optimizer", optimizer)
        loss = descend(source(range(1437), name="images", batch=32, shuffle=True, repeat=20))
        watch = [hooks.SignalHook(), hooks.ProgressHook(900, values=[loss])]
        session = MonitoredTrainingSession(hooks=watch, checkpoint_dir=directory, save_checkpoint_steps=20)

    async def step(ctx: StepContext) -> None:
        await ctx.run_with_hooks(loss)

    async with session:
        await session.loop(step)
    right = model(images[1437:] / 16).argmax(dim=1) == labels[1437:]
    print(f"{right.sum()} of {len(right)} images are right. Ended by {session.stop_reason}")


anyio.run(main, sys.argv[1])
