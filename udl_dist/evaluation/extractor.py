"""Features to compare sets of images by: a fixed descriptor, averaged pixels, a network in a file.

A classifier of `udl fit-extractor` is one safetensors file; its sha256 goes into every protocol,
because two classifiers give different distances.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from udl_dist.core.config_schema import as_path
from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.evaluation.io import read_tensors
from udl_dist.evaluation.metric_group import Extractor
from udl_dist.evaluation.settings import DETAIL, LITE0, PIXELS
from udl_dist.methods.losses import perceptual
from udl_dist.methods.method import Shape
from udl_dist.methods.metrics import descriptor, frechet
from udl_dist.methods.networks import NetworkSettings, encoder, feature_files
from udl_dist.methods.networks.code_files import KINDS, kind, one_line, read_code

FEATURES = 64
WHAT = "extractor"
PROBED = (2, 3)  # batch sizes to try: the width must not depend on them
# The slope of features below 0, by the kind of file. 1 divided each feature by its own std; its
# files give other distances and are refused.
SLOPES = {"udl-dist extractor 2": 0.0, "udl-dist extractor 3": 0.1}
KIND = "udl-dist extractor 3"
SIDES = f"{frechet.SIDE}×{frechet.SIDE}"
OWN_EXTRACTORS = {
    DETAIL: Extractor(  # layout, texture and grids at every scale; the default, needs no labels
        descriptor.NAME,
        descriptor.describe,
        cannot_see="objects: parts that are each lifelike may be put together wrongly",
    ),
    PIXELS: Extractor(
        f"pixels averaged to {SIDES}",
        frechet.small,
        sees_detail=False,
        cannot_see=f"anything finer than {SIDES} pixels: blur, noise, grids of dots",
    ),
}


class Classifier(nn.Module):
    """Convolutions to 64 features, and a linear layer on them.

    All features are divided by one number, so that their mean variance is 1.
    """

    # Divided each by its own std, a feature that training images hardly ever activate dominates a
    # distance: three sets of one GAN were 4.0, 5.5 and 16.3 from real ones, now 1.98, 2.01, 2.00.

    # With a slope of 0 all features of 1,000 classes were 0 after 300 steps, and stayed so.

    def __init__(self, shape: Shape, classes: int, slope: float = SLOPES[KIND]) -> None:
        super().__init__()
        self.shape, self.classes, self.slope = shape, classes, slope
        self.body = encoder(NetworkSettings(kind="conv"), shape, (FEATURES,))
        self.head = nn.Linear(FEATURES, classes)
        self.centre: Tensor
        self.scale: Tensor
        self.register_buffer("centre", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:  # [N, C, H, W] -> [N, classes]
        logits: Tensor = self.head(self.activated(images))
        return logits

    def activated(self, images: Tensor) -> Tensor:  # [N, C, H, W] -> [N, 64], as the head gets them
        return functional.leaky_relu(self.body(images), self.slope)

    def features(self, images: Tensor) -> Tensor:  # [N, C, H, W] -> [N, 64]
        found: Tensor = (self.activated(images) - self.centre) / self.scale
        if not bool(found.isfinite().all()):
            raise TrainingError("the extractor gives numbers that are not finite: fit it again")
        return found

    def logits(self, features: Tensor) -> Tensor:  # [N, 64] -> [N, classes]
        # From features as they are compared back to those of the body.
        found: Tensor = self.head(features.to(self.scale.device) * self.scale + self.centre)
        return found

    def save(self, path: Path) -> None:
        facts = {"kind": KIND, "shape": json.dumps(self.shape), "classes": str(self.classes)}
        tensors = {name: value.contiguous().cpu() for name, value in self.state_dict().items()}
        save_file(tensors, path, facts)


def find(asked: str, shape: Shape, device: torch.device, trusted: bool = False) -> Extractor:
    """One by its name or the path of its file; raise UsageError or DataError for another.

    A file that is code is refused unless it is `trusted`.
    """
    if asked in OWN_EXTRACTORS:
        return OWN_EXTRACTORS[asked]
    if asked == LITE0 or feature_files.holds_weights(as_path(asked)):
        return _pooled(perceptual.load(asked, shape).to(device))
    path = as_path(asked)
    if kind(path, WHAT):
        return load_external(path, trusted, shape, device)
    classifier = load_classifier(path, shape).to(device)
    name = f"classifier of {classifier.classes} classes"
    # Of the whole file, as `udl fit-extractor` printed it.
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Extractor(name, classifier.features, sha256, classifier.logits)


def load_external(path: Path, trusted: bool, shape: Shape, device: torch.device) -> Extractor:
    """The network in a file; raise UsageError unless `trusted`, DataError if it is unusable."""
    if not trusted:
        raise UsageError(
            f"{WHAT} {path} is {KINDS[kind(path, WHAT)]}, which can do on this machine whatever you"
            " can: if you trust its author, say --trust-extractor true"
        )
    # Read once: what is checked, loaded and hashed is the same, even if the file is replaced
    # meanwhile.
    data = path.read_bytes()
    network, device = read_code(f"{WHAT} {path}", data, device)
    features = _checked(path, network, device)
    with torch.no_grad():
        # Before any image is decoded: a network of another input fails here.
        for count in PROBED:
            features(torch.zeros(count, *shape, device=device))
    return Extractor(path.name, features, hashlib.sha256(data).hexdigest())


def _checked(
    path: Path, network: Callable[[Tensor], Any], device: torch.device
) -> Callable[[Tensor], Tensor]:
    """The network with a check of its output; dimensions after the second are flattened."""
    where, width = f"{WHAT} {path}", 0  # width: of the rows of the first images

    def features(images: Tensor) -> Tensor:  # [N, C, H, W] -> [N, F]
        nonlocal width
        try:
            found = network(images.to(device))
        except Exception as error:  # external code raises anything
            raise DataError(
                f"{where} cannot take {list(images.shape)}: {one_line(error)}: export it for such"
                " images, any number of them"
            ) from None
        is_tensor = isinstance(found, Tensor)
        is_rows = is_tensor and found.ndim >= 2 and len(found) == len(images)
        if not is_rows or not found.numel():
            got = f"a tensor of {list(found.shape)}" if is_tensor else f"a {type(found).__name__}"
            raise DataError(
                f"{where} gives {got} for {len(images)} images: let it give a tensor with a row for"
                " each"
            )
        rows: Tensor = found.flatten(1).float()
        # Rows of different widths could not be joined into one set.
        width = width or rows.shape[1]
        if rows.shape[1] != width:
            raise DataError(
                f"{where} gave {width} numbers for an image and now {rows.shape[1]}: let their"
                " count be the same for all images"
            )
        if not bool(rows.isfinite().all()):
            raise TrainingError(f"{where} gives numbers that are not finite: use another")
        return rows

    return features


def _pooled(network: perceptual.PerceptualLoss) -> Extractor:
    def features(images: Tensor) -> Tensor:  # [N, C, H, W] -> [N, F]
        found = network.pooled(images)
        if not bool(found.isfinite().all()):
            raise TrainingError(
                f"extractor {network.name} gives numbers that are not finite: use another"
            )
        return found

    return Extractor(f"{network.name}, mean of the last map", features, network.sha256)


def load_classifier(path: Path, shape: Shape) -> Classifier:
    """A classifier from its file; raise DataError for another file, UsageError for other images."""
    tensors, facts = read_tensors(
        path, "extractor", "make one with udl fit-extractor, or say detail"
    )
    slope = SLOPES.get(facts.get("kind", ""))
    if slope is None:
        raise DataError(
            f"{path} was not written by udl fit-extractor of this version, and weights alone are "
            "not a network: make one, export yours by torch.export, or say detail"
        )
    if tuple(json.loads(facts["shape"])) != shape:
        raise UsageError(
            f"{path} takes images of {facts['shape']}, these are {list(shape)}: fit one to such"
            " images"
        )
    classifier = Classifier(shape, int(facts["classes"]), slope)
    try:
        classifier.load_state_dict(tensors)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise DataError(f"{path} is damaged ({why}): fit it again") from None
    return classifier.requires_grad_(False).eval()
