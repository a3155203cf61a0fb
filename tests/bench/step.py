"""python -m tests.bench.step: our step, stream and reports included, against a bare torch loop over
tensors in memory.

VAE 784-512-256-32, batch 128, one rank. The two take turns, so the machine's moods
meet both; what is printed is the median ratio of neighbouring turns. Goal: 1.25 times as fast
(fused Adam is most of it).
"""

import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from tests.training.learn import Run
from udl_dist import experiment
from udl_dist.core.config_schema import to_dict
from udl_dist.data.packing.pack import pack
from udl_dist.data.settings import PackSettings
from udl_dist.training import arithmetic

STEPS, TURNS, BATCH = 150, 7, 128
FLAGS = {
    "method.name": "vae",
    "method.network.kind": "dense",
    "method.network.widths": "512,256",
    "method.network.activation": "relu",
    "method.network.norm": "none",
    "method.latent_dim": "32",
    "method.likelihood": "bernoulli",  # as the bare loop's
    "train.batch_size": str(BATCH),
    "train.total_images": "100000000",
    "evaluate.every_images": "100000000",
}


def ours(source: Path, readers: int) -> Iterator[None]:
    """One turn a `next`: STEPS steps of the real loop, with a report (and its file) at the end of
    each turn.
    """
    run = Run(
        experiment.load(None, FLAGS | {"data.source": str(source), "data.readers": str(readers)})
    )
    with tempfile.TemporaryFile("w") as curves:
        for report in run.reports(every=STEPS * BATCH, validate=10**9):
            curves.write(str(report.metrics))
            yield


def bare(images: torch.Tensor) -> Iterator[None]:
    """The loop that a person writes first: data in memory, random indices, default Adam, `.item()`
    now and then.
    """
    encoder = nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 512),
        nn.ReLU(),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Linear(256, 64),
    )
    decoder = nn.Sequential(
        nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 784)
    )
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3)
    while True:
        for _ in range(STEPS):
            seen = images[torch.randint(len(images), (BATCH,))]
            mean, logvar = encoder(seen).chunk(2, 1)
            output = decoder(mean + (logvar / 2).exp() * torch.randn_like(mean))
            pixels = functional.binary_cross_entropy_with_logits(
                output, seen.flatten(1), reduction="none"
            ).sum(1)
            kl = (mean.square() + logvar.exp() - 1 - logvar).sum(1) / 2
            loss = (pixels + kl).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()
        yield


def seconds(turn: Callable[[], None]) -> float:
    started = time.perf_counter()
    turn()
    return time.perf_counter() - started


def bare_turns(asked: Connection) -> None:
    """A process that does a turn of the bare loop, a new one if asked, and answers its seconds."""
    turns = bare(torch.rand(5000, 1, 28, 28))
    with suppress(EOFError):
        while True:
            if asked.recv():
                turns = bare(torch.rand(5000, 1, 28, 28))
            asked.send(seconds(turns.__next__))


def main() -> None:
    # In a process of its own: ours counts denormal numbers as 0, the loop that a person writes
    # first does not, and threads of torch inherit that from the first.
    asked, answering = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    spawn.Process(target=bare_turns, args=(answering,), daemon=True).start()

    def bare_turn(new: bool = False) -> float:
        asked.send(new)
        return float(asked.recv())

    arithmetic.set_up(torch.device("cpu"), "world", "float32")
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for kind, readers in itertools.product(("raw", "png"), (0, 1)):
            source = Path(folder) / f"{kind}{readers}"
            pack("digits", str(source), PackSettings(format=kind), lambda *_: None)  # type: ignore[arg-type]
            us = ours(source, readers)
            next(us)
            bare_turn(new=True)
            times = [(seconds(lambda: next(us)), bare_turn()) for _ in range(TURNS)]  # noqa: B023
            ratio = statistics.median(theirs / mine for mine, theirs in times)
            best = [
                STEPS * BATCH / statistics.median(column) for column in zip(*times, strict=True)
            ]
            rows.append((kind, readers, best[0], best[1], ratio))
            us.close()  # type: ignore[attr-defined]
    print(
        f"torch threads {torch.get_num_threads()}; settings {to_dict(PackSettings())['size']} px;"
        " images a second"
    )
    print(f"{'shards':8}{'readers':>8}{'ours':>10}{'bare torch':>12}{'ratio':>8}")
    for kind, readers, mine, theirs, ratio in rows:
        print(f"{kind:8}{readers:8}{mine:10,.0f}{theirs:12,.0f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
