"""A short real training for tests: packed random images, a small method, the loop; a hash of all
that is learned.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udl_dist import experiment as experiments
from udl_dist import methods
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.pack import pack
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import PackSettings
from udl_dist.experiment import Experiment
from udl_dist.methods.method import Method
from udl_dist.training.batches import decoded_rows
from udl_dist.training.distributed import Ranks
from udl_dist.training.loop import Hooks, Intervals, LoopState, Report, TrainingLoop
from udl_dist.training.train_state import TrainState

TOKENIZER = {
    "method.widths": "4,8",
    "method.blocks": "1",
    "method.adversary.width": "4",
    "method.adversary.halvings": "1",
    "method.adversary.loss": "softplus",
    # The discriminator learns from the fifth step on and acts from the tenth.
    "method.adversary.learns_after_images": "60",
    "method.adversary.acts_after_images": "120",
    "method.adversary.ramp_images": "60",
}
SMALL = {
    "kl": TOKENIZER | {"method.latent_channels": "2"},
    "vq": TOKENIZER
    | {
        "method.latent_channels": "6",
        "method.quantizer.codes": "16",
        "method.quantizer.dimensions": "3",
    },
    "codebook_vae": {"method.network.kind": "dense", "method.network.widths": "16"},
    "ae": {
        "method.network.kind": "dense",
        "method.network.widths": "16",
        "method.latent_dim": "4",
        "train.schedule": "constant",
    },
    "aae": {
        "method.network.kind": "dense",
        "method.network.widths": "16",
        "method.latent_dim": "4",
        "method.discriminator_widths": "8",
        "train.schedule": "constant",
    },
    "ladder": {
        "method.width": "8",
        "method.latent_channels": "2",
        "method.blocks": "0,1,1",
        "train.average_half_life": "0",
        "train.average_share": "0",
    },
    "vae": {
        "train.schedule": "constant",
        "method.network.kind": "dense",
        "method.network.widths": "16",
        "method.latent_dim": "4",
        "method.likelihood": "bernoulli",
    },
    "gan": {
        "method.latent_dim": "8",
        "method.generator": "conv",
        "method.discriminator": "article",
        "method.r1": "1",
        "method.r1_every": "1",
        "train.beta1": "0.9",
        "train.beta2": "0.999",
        "train.warmup_images": "0",
        "train.average_half_life": "0",
        "train.average_share": "0",
        "method.network.widths": "8,8",
        "method.network.norm": "none",
        "method.dropout": "0",
    },
}


def packed(folder: Path, records: int = 70, size: int = 8) -> Path:
    """A packed data set of random images with soft shapes, a fifth held out."""
    random = np.random.default_rng(3)
    coarse = random.integers(0, 256, (records, size // 4, size // 4), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", coarse.repeat(4, axis=1).repeat(4, axis=2))
    settings = PackSettings(size=size, format="npy", held_out_fraction=0.2, shard_records=32)
    pack(str(folder / "images.npy"), str(folder / "packed"), settings)
    return folder / "packed"


def asked(method: str, source: Path, **flags: str) -> Experiment:
    """An experiment on `source` with a small network; flags have `__` for the dot."""
    dotted = {name.replace("__", "."): value for name, value in flags.items()}
    data = {"data.source": str(source), "data.size": "8", "data.channels": "1", "data.readers": "0"}
    train = {"train.batch_size": "12", "train.total_images": "240", "train.learning_rate": "1e-3"}
    return experiments.load(
        None, {"method.name": method, **SMALL[method], **data, **train, **dotted}
    )


class Run:
    """A learning and its reports; `ranks` is made by the caller's process.

    `kind` is a method of the tests that takes the place of the one that the experiment names.
    """

    def __init__(
        self,
        experiment: Experiment,
        ranks: Ranks | None = None,
        kind: type[Method] | None = None,
    ) -> None:
        self.experiment = experiment
        self.ranks = ranks or Ranks()
        rows = decoded_rows(experiment.data, self.ranks)
        self.stream, self.held_out = open_streams(
            prepare(experiment.data), experiment.train.seed, decoded=rows
        )
        torch.manual_seed(experiment.train.seed)
        kind = kind or methods.find(experiment.method_name)
        method = kind(experiment.method, self.stream.shape, self.stream.classes)
        shares = experiment.train.VIRTUAL_RANKS if experiment.run.determinism == "elastic" else 0
        self.learning = TrainState(method, experiment.train, self.ranks, shares)

    def reports(
        self,
        start: int = 0,
        every: int = 12,
        validate: int = 120,
        resumed: LoopState = LoopState(),  # noqa: B008
        **hooks: Any,
    ) -> Iterator[Report]:
        intervals = Intervals(every, validate, validate)
        settings = self.experiment.train
        loop = TrainingLoop(
            self.learning,
            self.stream,
            self.held_out,
            settings,
            intervals,
            self.ranks,
            Hooks(**hooks),
        )
        return loop.reports(start, resumed)

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """A copy of all that a checkpoint holds."""
        return {
            file: {name: value.clone() for name, value in tensors.items()}
            for file, tensors in self.learning.tensors().items()
        }

    def hash(self) -> str:
        """One sha256 over networks, averages and optimisers."""
        digest = hashlib.sha256()
        for file, tensors in sorted(self.learning.tensors().items()):
            for name, value in sorted(tensors.items()):
                digest.update(f"{file}/{name}".encode() + value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def weights(self) -> torch.Tensor:
        """Every weight as one vector."""
        return torch.cat([value.detach().flatten() for value in self.learning.method.parameters()])
