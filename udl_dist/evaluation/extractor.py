"""What sets of images are compared by: a fixed descriptor, averaged pixels, a classifier, or a
network of one's own.

A classifier is one safetensors file; its sha256 goes into every protocol, for two of them give
other distances.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from udl_dist.core.config_schema import as_path
from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.evaluation import external_extractors as foreign
from udl_dist.evaluation.metric_group import Extractor
from udl_dist.evaluation.settings import DETAIL, OWN
from udl_dist.methods import Shape, descriptor, frechet
from udl_dist.methods.networks import NetworkSettings, encoder

FEATURES = 64
KIND = "udl-dist extractor 2"


class Detail:
    """Layout, texture and grids at every scale (see `methods/descriptor.py`); the default, it needs
    no labels.
    """

    name = descriptor.NAME
    hash = "none"
    classes = 0
    sees_detail = True
    cannot_see = "objects: parts that are each lifelike may be put together wrongly"

    def features(self, images: Tensor) -> Tensor:
        return descriptor.describe(images)

    def logits(self, features: Tensor) -> Tensor:
        raise NotImplementedError


class Pixels:
    """Averages of pixels in [-1, 1]: a blurred image and a sharp one are the same."""

    name = f"pixels averaged to {frechet.SIDE}×{frechet.SIDE}"
    hash = "none"
    classes = 0
    sees_detail = False
    cannot_see = (
        f"anything finer than {frechet.SIDE}×{frechet.SIDE} pixels: blur, noise, grids of dots"
    )

    def features(self, images: Tensor) -> Tensor:
        return frechet.small(images)

    def logits(self, features: Tensor) -> Tensor:
        raise NotImplementedError


class Classifier(nn.Module):
    """Convolutions to 64 features, and a linear layer on them.

    All features are divided by one number, so that their mean variance is 1. Each by its own
    deviation, one that training images hardly ever wake would rule a distance: three sets of one
    GAN were 4.0, 5.5 and 16.3 from real ones, where they are 1.98, 2.01 and 2.00 now.
    """

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.shape, self.classes = shape, classes
        self.body = encoder(NetworkSettings(kind="conv"), shape, FEATURES).build()
        self.head = nn.Linear(FEATURES, classes)
        self.centre: Tensor
        self.scale: Tensor
        self.register_buffer("centre", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(()))
        self.name, self.hash = f"classifier of {classes} classes", ""
        self.sees_detail, self.cannot_see = True, ""

    def forward(self, images: Tensor) -> Tensor:  # [N, C, H, W] -> [N, classes]
        logits: Tensor = self.head(self.body(images).relu())
        return logits

    def features(self, images: Tensor) -> Tensor:
        """[N, 64], or TrainingError for what is not finite."""
        found: Tensor = (self.body(images).relu() - self.centre) / self.scale
        if not bool(found.isfinite().all()):
            raise TrainingError(
                f"the extractor {self.name} gives numbers that are not finite: fit it again"
            )
        return found

    def logits(self, features: Tensor) -> Tensor:
        """Those of images from their features."""
        found: Tensor = self.head(features.to(self.scale.device) * self.scale + self.centre)
        return found

    def save(self, path: Path) -> None:
        facts = {"kind": KIND, "shape": json.dumps(self.shape), "classes": str(self.classes)}
        save_file(
            {name: value.contiguous().cpu() for name, value in self.state_dict().items()},
            path,
            facts,
        )


def find(asked: str, shape: Shape, device: torch.device, trusted: bool = False) -> Extractor:
    """`detail`, `pixels`, or the network in a file; raise UsageError or DataError for one that does
    not fit or is not trusted.
    """
    if asked in OWN:
        return Detail() if asked == DETAIL else Pixels()
    path = as_path(asked)
    return (
        foreign.load(path, trusted, shape, device)
        if foreign.kind(path)
        else load(path, shape).to(device)
    )


def load(path: Path, shape: Shape) -> Classifier:
    """A classifier from its file; raise DataError if it is none, UsageError if it looks at other
    images.
    """
    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} is no extractor ({' '.join(str(error).split())}): make one with udl"
            " fit-extractor, or say detail"
        ) from None
    if facts.get("kind") != KIND:
        raise DataError(
            f"{path} is no extractor that udl fit-extractor of this version wrote, and weights"
            " alone are no network: make one, export yours by torch.export, or say detail"
        )
    if tuple(json.loads(facts["shape"])) != shape:
        raise UsageError(
            f"{path} looks at images of {facts['shape']}, these are {list(shape)}: fit one to such"
            " images"
        )
    made = Classifier(shape, int(facts["classes"]))
    try:
        made.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(f"{path} is damaged ({str(error).splitlines()[0]}): fit it again") from None
    made.hash = hashlib.sha256(path.read_bytes()).hexdigest()
    return made.requires_grad_(False).eval()
