"""What is learned: the contract of every method, and how a method is found by its name.

One file, one method. A file of this folder, or a module that an installed package names in the
entry-point group `udl_dist.methods`, holds one subclass of `Method` with its own `Settings`. A
method knows its networks and its losses; it knows no optimiser, device, rank, file or Ray. PyTorch
is imported when a network is built or a loss is run, not before: settings are read, refused and
counted without it (importing torch alone takes 1.5 s).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from udl_dist.core.config_schema import nearest
from udl_dist.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from udl_dist.methods.networks import Network

    Losses = tuple[Tensor, dict[str, Tensor]]

Shape = tuple[int, int, int]  # C, H, W of an image

# Modules of this folder that are not methods.
HELPERS = ("descriptor", "frechet", "gan_alarms", "networks", "pixels")
EXPLODED = 100.0  # root mean square of latents or logits; healthy runs stay below 10


@dataclass(frozen=True)
class Batch:
    """Images and the keys of all random draws, which depend on no rank, reader or restart.

    `keys` differ by (seed, epoch, record), `record_keys` by (seed, record) alone: a draw from the
    latter stays the same in every epoch (static binarisation). `seen` counts the images of all
    ranks before this step.
    """

    images: Tensor  # [B, C, H, W] float in [-1, 1]
    keys: Tensor  # [B] int64
    record_keys: Tensor  # [B] int64
    seen: int


@dataclass(frozen=True)
class Phase:
    """One optimiser step of a method: which networks learn, by which loss, in every n-th step.

    The loss is `(batch) -> (scalar to minimise, {name: scalar to plot})`; both are means over the
    images of the batch. It must reach every parameter of these networks: DDP waits for all.
    """

    trains: tuple[str, ...]
    loss: Callable[[Batch], Losses]
    every: int = 1
    rate: float = 1.0  # factor on train.learning_rate


class Method:
    """A method: named networks, phases, and what it can do; not an nn.Module, `networks` is one.

    A subclass sets `Settings` (a frozen dataclass made of `setting(...)`), describes its networks,
    lists its phases, and defines those of encode, decode, reconstruct, prior, sample, measure that
    make sense for it. `measure` returns values of each image, `figures` turns their means into
    metrics, and `alarms` names the failures that these metrics show.
    """

    Settings: ClassVar[type]
    # The metric whose least value marks the best checkpoint; "" if there is none.
    best: ClassVar[str] = ""
    # Metric -> the settings that change its scale; (): the metric does not rank runs at all.
    incomparable: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # Metric -> what it is blind to, in words for readers of reports.
    cannot_see: ClassVar[Mapping[str, str]] = {}
    # A note for people on generated images, with commands for the run folder RUN; "" for none.
    about_samples: ClassVar[str] = ""
    networks: nn.ModuleDict

    def __init__(self, settings: Any, shape: Shape) -> None:
        self.settings = settings
        self.shape = shape

    def describe(self) -> Mapping[str, Network]:
        """The networks by name, as descriptions that are counted and built; needs no torch."""
        raise NotImplementedError

    def phases(self) -> tuple[Phase, ...]:
        """The phases in the order in which a step runs them."""
        raise NotImplementedError

    def averaged(self) -> tuple[str, ...]:
        """The networks whose weights are averaged; by default all of them."""
        return tuple(self.describe())

    def differentiated_twice(self) -> tuple[str, ...]:
        """The networks whose input gradient is part of a loss (a gradient penalty)."""
        # They are never compiled: compiled code has no double backward, an error on torch 2.13.
        return ()

    def build(self) -> None:
        """Make `networks`, initialised from torch's current random state, on the CPU."""
        from torch import nn

        self.networks = nn.ModuleDict(
            {name: network.build() for name, network in self.describe().items()}
        )

    def can(self, ability: str) -> bool:
        """Whether this method defines an ability, such as `encode`, or has all that it needs."""
        if getattr(type(self), ability) is not getattr(Method, ability):
            return True
        follows = {"reconstruct": ("encode", "decode"), "sample": ("prior", "decode")}
        return ability in follows and all(self.can(part) for part in follows[ability])

    def encode(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, Z]
        """The latents of images, without randomness (a VAE gives the mean)."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:  # [B, Z] -> [B, C, H, W] in [-1, 1]
        """The images of latents."""
        raise NotImplementedError

    def reconstruct(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> the same
        """Images encoded and decoded, without randomness."""
        return self.decode(self.encode(images))

    def damage(self, batch: Batch) -> Tensor:  # -> [B, C, H, W]
        """The input of the method: the images, or corrupted ones for a denoising method."""
        return batch.images

    def prior(self, keys: Tensor) -> Tensor:  # [N] int64 -> [N, Z]
        """Latents drawn from the prior, one for each random key."""
        raise NotImplementedError

    def sample(self, keys: Tensor) -> Tensor:  # [N] int64 -> [N, C, H, W] in [-1, 1]
        """New images, one for each random key: the same key gives the same image."""
        return self.decode(self.prior(keys))

    def alarms(self, figures: Mapping[str, float], seen: int) -> dict[str, str]:
        """The failures that the metrics of a validation show: name -> values and advice."""
        return {}

    def measure(self, batch: Batch) -> dict[str, Tensor]:  # each [B] or [B, D]
        """Held-out values of each image alone, so that sums over any shares of the data are exact.

        Each column is averaged: from x and x² as [B, D], `figures` has D variances over the data.
        """
        raise NotImplementedError

    def log_weights(self, batch: Batch, keys: Tensor) -> Tensor:  # [K, B] int64 -> [K, B]
        """log p(x, z) - log q(z|x) of one latent for each key and image.

        The mean of their exp over K estimates p(x) (Burda et al. 2016, eq. 8).
        """
        raise NotImplementedError

    def pixel_levels(self) -> int:
        """Values of a pixel under the likelihood: 2, 256 for a density, 0 without a likelihood."""
        return 0

    def figures(self, means: Mapping[str, Tensor]) -> dict[str, float]:  # each [] or [D], float64
        """The metrics, from the means of `measure` over all held-out images: by default scalars."""
        return {name: float(mean) for name, mean in means.items() if not mean.dim()}


def exploding(what: str, scale: float) -> dict[str, str]:
    """The alarm about latents or logits whose root mean square is above any healthy one."""
    if scale < EXPLODED:
        return {}
    return {
        "exploding scale": (
            f"{what} of size {scale:.2g}: lower train.learning_rate, or set train.clip_norm"
        )
    }


def names() -> list[str]:
    """The names of all methods: files of this folder and entry points of installed packages."""
    return sorted({*_here(), *_installed()})


def find(name: str) -> type[Method]:
    """The method class called `name`; raise UsageError with the nearest name if there is none.

    A job file cannot name code: only these files and entry points are ever imported.
    """
    # Our own files come first: no installed package can replace a method by taking its name.
    module_name = _here().get(name) or _installed().get(name)
    if module_name is None:
        raise UsageError(f"unknown method.name {name!r}: {nearest(name, names())}")
    module = importlib.import_module(module_name)
    # Those that a module imports, to derive from them, are not its own.
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UsageError(
            f"method {name}: {module_name} must define one subclass of Method, found {len(found)}"
        )
    return found[0]


def _here() -> dict[str, str]:
    return {
        module.name: f"{__name__}.{module.name}"
        for module in pkgutil.iter_modules(__path__)
        if module.name not in HELPERS
    }


def _installed() -> dict[str, str]:
    return {
        entry.name: entry.module
        for entry in importlib.metadata.entry_points(group="udl_dist.methods")
    }
