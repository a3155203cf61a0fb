"""python -m tests.bench.ranks SOURCE: two ranks of ours against two of a bare DDP loop of the same
networks over tensors in memory.

The default VAE at 64 px, 64 images a rank and step, one thread a rank. Both take turns in the same
processes, after one epoch of ours, which fills the cache of decoded images; what is printed is the
median ratio of neighbouring turns. Goal: 0.97. Flags such as --method.network.kind=dense go to
both.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.training import gloo
from tests.training.learn import Run
from udl_dist import experiment
from udl_dist.methods.method import Method
from udl_dist.training.distributed import Ranks

STEPS, TURNS, BATCH = 20, 5, 64


class BareVAE(nn.Module):
    """Images to a mean loss: the networks of `method` under a Gaussian of fixed deviation."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        parts: Any = method
        self.encoder, self.decoder = copy.deepcopy((parts.encoder, parts.decoder))

    def forward(self, images: Tensor) -> Any:
        mean, logvar = self.encoder(images).chunk(2, 1)
        output = self.decoder(mean + (logvar / 2).exp() * torch.randn_like(mean))
        kl = (mean.square() + logvar.exp() - 1 - logvar).sum(1) / 2
        return ((output - images).square().flatten(1).sum(1) + kl).mean()


def ours(run: Run) -> Iterator[None]:
    """One turn a `next`: STEPS steps of the real loop with a report."""
    for _ in run.reports(every=STEPS * run.experiment.train.batch_size, validate=10**9):
        yield


def bare(method: Method, images: Tensor) -> Iterator[None]:
    """The same number of steps: random indices, default Adam."""
    model = DistributedDataParallel(BareVAE(method))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    while True:
        for _ in range(STEPS):
            loss = model(images[torch.randint(len(images), (BATCH,))])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()
        yield


def seconds(turn: Callable[[], None]) -> float:
    dist.barrier()
    started = time.perf_counter()
    turn()
    dist.barrier()
    return time.perf_counter() - started


def measure(flags: dict[str, str]) -> list[tuple[float, float]]:
    run = Run(experiment.load(None, flags), Ranks())
    us, them = ours(run), bare(run.learning.method, torch.rand(2000, *run.stream.shape))
    for _ in range(1 + run.stream.records // (STEPS * run.experiment.train.batch_size)):
        next(us)
    next(them)
    return [(seconds(lambda: next(us)), seconds(lambda: next(them))) for _ in range(TURNS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source")
    asked, rest = parser.parse_known_args()
    flags = {"method.name": "vae", "data.source": asked.source, "data.size": "64"}
    flags |= {"train.batch_size": str(2 * BATCH), "train.total_images": "100000000"}
    flags |= {"evaluate.every_images": "100000000"}
    flags |= dict(flag.removeprefix("--").split("=", 1) for flag in rest)
    times = gloo.run(2, measure, flags, seconds=600)[0]
    mine, theirs = (
        2 * STEPS * BATCH / statistics.median(column) for column in zip(*times, strict=True)
    )
    ratio = statistics.median(theirs / mine for mine, theirs in times)
    print(f"images a second: ours {mine:,.0f}, bare DDP {theirs:,.0f}; median ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
