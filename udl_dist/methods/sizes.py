"""What a method costs, before it has any memory: built and run on torch's meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from udl_dist.errors import UsageError
from udl_dist.methods.method import Batch, Method, Shape

MOST_LISTED = 12  # widths of a network
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
        with torch.device("meta"), Undrawn():
            return self()


@dataclass(frozen=True)
class Cost:
    """What a step takes for each image of a rank; 0 and 0 where it is not known."""

    flops: int  # of forward and backward through every phase; a multiply-add is two
    activation_bytes: int  # that the phase with most of them stores for its backward


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
    batch = Batch(images, keys, keys, 0, keys if method.classes else None)
    stored = []
    with FlopCounterMode(display=False) as counter:
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
            gradients = (
                torch.autograd.grad(loss.value, [*weights.values()], allow_unused=True)
                if loss.value.requires_grad
                else (None,) * len(weights)  # it has no part of any weight
            )
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is None:
                    raise UsageError(
                        f"method.name: a phase that trains {', '.join(phase.trains)} has a loss"
                        f" that {name} has no part in: use it, or leave it out of the network"
                    )
            own = {weight.untyped_storage()._cdata for weight in method.parameters()}
            # A view keeps the whole of its storage.
            kept = [value.untyped_storage() for place, value in saved.items() if place not in own]
            sizes = [storage.nbytes() for storage in kept]
            stored.append(sum(sizes) // ROWS)
    return Cost(counter.get_total_flops() // ROWS, max(stored, default=0))


def in_words(network: nn.Module) -> str:
    """The kind, and the width of each layer with weights: "conv 32-64-8"."""
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


def mixes_images(network: nn.Module) -> bool:
    """Whether an image's output depends on the others of its batch (batch normalisation)."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


class Undrawn(TorchFunctionMode):
    """Skips drawing first weights: on meta a draw only imports torch's compiler, for 1 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("normal_", "uniform_", "trunc_normal_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
