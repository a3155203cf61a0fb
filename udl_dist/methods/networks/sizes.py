"""What a method costs, before it has any memory: built and run on torch's meta device."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from udl_dist.errors import UsageError
from udl_dist.methods.method import Batch, Method, Shape
from udl_dist.methods.networks.blocks import Attention
from udl_dist.methods.networks.layers import Pair
from udl_dist.methods.networks.resnet import SMALLEST

MOST_LISTED = 12  # widths of a network
# Images seen before the step that is counted: after every start and warm-up, and a step in which a
# GAN of 1, 2, 4 or 8 steps between penalties has one.
LATE = 2**40 + 4
ROWS = 2  # of the batch that is counted: batch normalisation needs two


@dataclass(frozen=True)
class MethodMaker:
    """Makes a method with first weights drawn from torch's present random state."""

    kind: type[Method]
    settings: Any
    shape: Shape
    classes: tuple[str, ...] = ()

    def __call__(self) -> Method:
        return self.kind(self.settings, self.shape, self.classes)

    def on_meta(self) -> Method:
        """The method without memory or numbers."""
        with torch.device("meta"), without_compiler():
            return self()


@dataclass(frozen=True)
class Cost:
    """What a step takes for each image of a rank; 0 and 0 where it is not known."""

    flops: int  # of forward and backward through every phase; a multiply-add is two
    activation_bytes: int  # that the phase with most of them stores for its backward


@functools.lru_cache(maxsize=256)
def cost_of(make: MethodMaker) -> Cost:
    """`cost` of the method on the meta device; the trials of a search are often alike in it."""
    return cost(make.on_meta())


def cost(method: Method) -> Cost:
    """The cost of a method on the meta device; raise UsageError for a phase that leaves out a
    weight.

    The losses run without numbers. One that reads a value on the host, or chooses rows by a
    condition, cannot: then the cost is not known.
    """
    try:
        return _cost(method)
    except (RuntimeError, NotImplementedError):
        return Cost(0, 0)


def _cost(method: Method) -> Cost:
    keys = torch.zeros(ROWS, dtype=torch.int64, device="meta")
    images = torch.zeros(ROWS, *method.shape, device="meta")
    batch = Batch(images, keys, keys, LATE, keys if method.classes else None)
    stored = []
    with without_compiler(), FlopCounterMode(display=False) as counter:
        for phase in method.phases():
            saved: dict[int, Tensor] = {}

            def keep(tensor: Tensor, saved: dict[int, Tensor] = saved) -> Tensor:
                saved[tensor.untyped_storage()._cdata] = tensor
                return tensor

            for name, network in method.networks.items():
                network.requires_grad_(name in phase.trains)
            weights = {
                f"{name}.{key}": weight
                for name in phase.trains
                for key, weight in method.networks[name].named_parameters()
            }
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = phase.loss(batch)
            if loss.value.requires_grad:  # else it has no part of any weight
                # Not autograd.grad, in which the counter's hooks refuse a module that is given a
                # weight (spectral normalisation).
                torch.autograd.backward(loss.value, inputs=[*weights.values()])
            for name, weight in weights.items():
                gradient, weight.grad = weight.grad, None
                if gradient is None:
                    raise UsageError(
                        f"method.name: a phase that trains {', '.join(phase.trains)} has a loss"
                        f" that {name} has no part in: use it, or leave it out of the network"
                    )
            own = {weight.untyped_storage()._cdata for weight in method.parameters()}
            # A view keeps the whole of its storage.
            storages = [
                value.untyped_storage() for place, value in saved.items() if place not in own
            ]
            sizes = [storage.nbytes() for storage in storages]
            stored.append(sum(sizes) // ROWS)
    return Cost(counter.get_total_flops() // ROWS, max(stored, default=0))


def in_words(network: nn.Module) -> str:
    """The kind, and the width of each layer with weights: "conv 32-64-8"."""
    if own := getattr(network, "in_words", None):  # a codebook says itself what it is
        return str(own)
    convolutions = (nn.Conv2d, nn.ConvTranspose2d)
    widths = [
        module.out_features if isinstance(module, nn.Linear) else module.out_channels
        for module in network.modules()
        if isinstance(module, (nn.Linear, *convolutions))
    ]
    if not widths:  # an embedding of classes; the decoder of tied weights, a learned variance
        embeds = any(isinstance(module, nn.Embedding) for module in network.modules())
        return "embedding" if embeds else "bias"
    kind = "conv" if any(isinstance(m, convolutions) for m in network.modules()) else "dense"
    if len(widths) > MOST_LISTED:
        return f"{kind}, {len(widths)} layers of {min(widths)} to {max(widths)}"
    return f"{kind} {'-'.join(map(str, widths))}"


def warnings(networks: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """What a plan warns of: networks that end at maps of more than 8 pixels a side, unattended.

    A network says its smallest map by an attribute `smallest`. A side of 3 pixels is as small as it
    gets.
    """
    large: dict[Pair, list[str]] = {}
    for name, network in networks.items():
        smallest: Pair | None = vars(network).get("smallest")
        attends = any(
            isinstance(module, (Attention, nn.MultiheadAttention)) for module in network.modules()
        )
        if smallest and max(smallest) > SMALLEST and min(smallest) > 3 and not attends:
            large.setdefault(smallest, []).append(name)
    return tuple(
        f"{' and '.join(names)}: the smallest map has {height} x {width} pixels and no attention,"
        f" so no convolution sees the whole image; halve it to {SMALLEST} or fewer by more"
        " method.network.widths, or choose attention or other networks"
        for (height, width), names in large.items()
    )


def mixes_images(network: nn.Module) -> bool:
    """Whether an image's output depends on the others of its batch (batch normalisation)."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


# Importing torch's compiler takes 1.6 s, and the meta device does it for nothing: its kernels in
# Python are decorated to be left out of compiled code. The first call of one imports torch._dynamo
# and keeps on the kernel what `torch._dynamo.disable` makes of it. Here that is the kernel itself,
# and it is forgotten at the end.
@contextmanager
def without_compiler() -> Iterator[None]:
    if "torch._dynamo" in sys.modules:
        yield
        return
    stand_in = _CompilerStandIn("torch._dynamo")
    sys.modules[stand_in.__name__] = stand_in
    try:
        yield
    finally:
        if sys.modules[stand_in.__name__] is stand_in:
            del sys.modules[stand_in.__name__]
        for kernel in stand_in.kernels:
            vars(kernel).pop("__dynamo_disable", None)


class _CompilerStandIn(ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.kernels: list[Callable[..., Any]] = []

    def disable(
        self, kernel: Callable[..., Any], *_args: Any, **_kwargs: Any
    ) -> Callable[..., Any]:
        self.kernels.append(kernel)
        return kernel

    def __getattr__(self, name: str) -> Any:  # whatever else is asked for: of the compiler itself
        if sys.modules[self.__name__] is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)
