"""A metric group: the statistics it collects of batches, and the metrics it computes from them.

Sums are in float64 and rows keep their order, so metrics are the same over any number of ranks.
A group knows a method, but no stream, rank or file.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from udl_dist.evaluation.io import EXTRA, ClassMetric, Metric
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.methods.method import Batch, Method, Shape

HELD_OUT, TRAIN = "held_out", "train"  # measured on the first, fitted to the second
LEFT_OUT = "left_out"  # held-out images of classes that training never saw


# Images for random keys [N] int64 and, in a conditional method, labels [N] int64.
Sampler = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Extractor:
    """A network or function that turns images into the features that sets are compared by."""

    name: str
    features: Callable[[Tensor], Tensor]  # [N, C, H, W] in [-1, 1] -> [N, F]
    hash: str = "none"
    logits: Callable[[Tensor], Tensor] | None = None  # [N, F] -> [N, classes], of a classifier
    sees_detail: bool = True  # else a blurred image would count as a neighbour of a sharp one
    cannot_see: str = ""  # in words, for the protocol; "" where it is not known

    @property
    def blindness(self) -> str:
        """Why it allows no metrics of single images, in words; "" if it does."""
        return (
            "" if self.sees_detail else f"the extractor ({self.name}) cannot see {self.cannot_see}"
        )

    def protocol(self) -> dict[str, object]:
        """Its part of the protocol of a metric."""
        found: dict[str, object] = {"extractor": self.name, "extractor_sha256": self.hash}
        return found | ({"cannot_see": self.cannot_see} if self.cannot_see else {})


@dataclass(frozen=True)
class Subject:
    """The measured method, ready on its device, with its settings and extractor."""

    method: Method
    shape: Shape
    latent_dim: int
    asked: MetricSettings
    extractor: Extractor
    sample: Sampler | None  # None if it cannot
    sampled_from: str  # the source of its latents, in words
    labelled: bool = False  # whether both held-out and training images have labels
    classes: tuple[str, ...] = ()  # the names of the labels of held-out images
    left_out: tuple[int, ...] = ()  # classes that training never saw, with held-out images
    # Batches [B, C, H, W] of held-out and training images, for references of several passes.
    real: Mapping[str, Callable[[], Iterable[Tensor]]] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricBatch:
    """One batch on the method's device; `start` counts the images before it."""

    batch: Batch
    labels: Tensor  # [B] int64; -1 where there is none
    start: int


@dataclass
class PartialSums:
    """Statistics of some images: sums over them in float64, and a row for each."""

    images: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    classes: dict[int, PartialSums] = field(default_factory=dict)  # the same, by label

    def mean(self, name: str) -> Tensor:
        return self.sums[name] / self.images

    @classmethod
    def joined(cls, parts: Iterable[PartialSums]) -> PartialSums:
        """Parts in order as one: sums are added, rows concatenated."""
        whole, rows = cls(), dict[str, list[Tensor]]()
        classes: dict[int, list[PartialSums]] = {}
        for part in parts:
            whole.images += part.images
            for name, value in part.sums.items():
                # In the order of parts: sums of floats depend on it.
                whole.sums[name] = whole.sums[name] + value if name in whole.sums else value
            for name, value in part.rows.items():
                rows.setdefault(name, []).append(value)
            for label, one in part.classes.items():
                classes.setdefault(label, []).append(one)
        whole.rows = {name: torch.cat(values) for name, values in rows.items()}
        whole.classes = {label: cls.joined(classes[label]) for label in sorted(classes)}
        return whole


@dataclass(frozen=True)
class CodeMap:
    """Codes as points in a plane, [N, 2], their classes, [N] int64, and the name of each axis."""

    points: Tensor
    labels: Tensor
    axes: tuple[str, str]


class MetricGroup:
    """Metrics that are collected together.

    The *reference* of a group depends on real images alone, not on the model: floors, and
    statistics that metrics need. It is computed from the collected statistics, or `known` from an
    earlier evaluation; then nothing is collected for it.
    """

    name: ClassVar[str]
    learns: ClassVar[bool] = False  # whether it collects the model's output on training images
    refers: ClassVar[bool] = False  # whether its reference needs training images, if there are any
    compares: ClassVar[bool] = False  # whether it collects left-out images too, after held-out ones
    least: ClassVar[int] = 1  # images that its metrics need
    # Beginnings of the names of metrics of which more is better; of all others less is.
    higher_is_better: ClassVar[tuple[str, ...]] = ()

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.known = False

    def goes_through(self, split: str) -> bool:
        """Whether it collects anything of the images of a split."""
        if split == TRAIN:
            # A known reference spares the pass over training images, the longest of an evaluation.
            return self.learns or (self.refers and not self.known)
        return split == HELD_OUT or self.compares

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        """Why this method cannot have these metrics, in words; "" if it can."""
        raise NotImplementedError

    @classmethod
    def without(cls, subject: Subject) -> dict[str, str]:
        """Metrics of this group that this method cannot have, with the reason."""
        return {}

    def collect(self, split: str, seen: MetricBatch) -> PartialSums:
        """The statistics of one batch."""
        raise NotImplementedError

    def refers_to(self) -> Mapping[str, object]:
        """The settings that its reference depends on, besides the images."""
        return {}

    def reference(self, held_out: PartialSums, train: PartialSums | None) -> dict[str, Tensor]:
        """The reference of the group; `train` is None where there are no training images."""
        return {}

    def metrics(
        self, held_out: PartialSums, train: PartialSums | None, reference: Mapping[str, Tensor]
    ) -> dict[str, Metric]:
        """The metrics by name; `train` is None if the group collected no training images."""
        raise NotImplementedError

    def maps(self, held_out: PartialSums, train: PartialSums | None) -> dict[str, CodeMap]:
        """Maps of codes to plot, by name."""
        return {}

    def by_class(self, found: Mapping[int, ClassMetric]) -> dict[str, ClassMetric]:
        """A metric within each class, by the names of the classes."""
        names = self.subject.classes
        return {
            names[label] if label < len(names) else str(label): one for label, one in found.items()
        }

    def random_rows(self, rows: Tensor, count: int) -> Tensor:
        """`count` rows at random, since shards may be sorted; the same ones each time."""
        # A generator of its own: the global one would make the choice depend on what ran before.
        seeded = torch.Generator().manual_seed(self.subject.asked.seed)
        return rows[torch.randperm(len(rows), generator=seeded)[:count]]


def summed(values: Mapping[str, Tensor], labels: Tensor) -> PartialSums:
    """Sums over the images of a batch, [B, ...] -> [...], in float64 on the CPU; also by class.

    `labels` are [B] int64, -1 where there is none.
    """
    whole = _summed(values, len(labels))
    for label in sorted(set(labels.tolist())):
        if label >= 0:
            within = (labels == label).nonzero().squeeze(1)
            of_class = {name: value[within.to(value.device)] for name, value in values.items()}
            whole.classes[label] = _summed(of_class, len(within))
    return whole


def _summed(values: Mapping[str, Tensor], images: int) -> PartialSums:
    return PartialSums(images, {name: one.double().sum(0).cpu() for name, one in values.items()})


def sklearn_missing() -> str:
    """What to install if scikit-learn is missing; "" if it is there."""
    there = importlib.util.find_spec("sklearn") is not None
    return "" if there else f"it needs scikit-learn: {EXTRA}"
