"""What a family of figures is: what it takes of each batch, summed or kept, and what it makes of
all of it.

Sums are in float64 and rows keep their order, so that figures are the same over any number of
ranks. A family knows a method, never a stream, a rank or a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from udl_dist.evaluation.settings import FigureSettings
from udl_dist.methods import Batch, Method, Shape

HELD_OUT, TRAIN = "held_out", "train"  # what is measured, and what may be learned from
LEFT_OUT = "left_out"  # held-out images of classes that training never saw


class Extractor(Protocol):
    """What turns images into the numbers that sets of images are compared by."""

    name: str
    hash: str
    classes: int  # that it tells apart; 0: it is no classifier
    # if not, neighbours would call a blurred image a perfect one, and are left out
    sees_detail: bool
    cannot_see: str  # in words, for the protocol; "" where nobody can say

    def features(self, images: Tensor) -> Tensor: ...  # [N, C, H, W] in [-1, 1] -> [N, F]

    def logits(self, features: Tensor) -> Tensor: ...  # [N, F] -> [N, classes], of a classifier


@dataclass(frozen=True)
class Subject:
    """The method that is measured, ready on its device, and how."""

    method: Method
    shape: Shape
    latent_dim: int
    asked: FigureSettings
    extractor: Extractor
    sample: Callable[[Tensor], Tensor] | None  # [N] int64 keys -> images; None if it makes none
    sampled_from: str  # where its latents come from, in words
    labelled: bool = False  # whether both held-out and training images have labels
    # classes that training never saw, and of which there are held-out images
    left_out: tuple[int, ...] = ()
    # The real images in batches [B, C, H, W], held-out and training ones, for references that need
    # several passes.
    real: Mapping[str, Callable[[], Iterable[Tensor]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """One batch on the method's device; `start` counts the images before it, `labels` are -1 where
    there are none.
    """

    batch: Batch
    labels: Tensor  # [B] int64
    start: int


@dataclass
class Taken:
    """What was taken of images: sums over them in float64, and rows, one for each."""

    images: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)

    def mean(self, name: str) -> Tensor:
        return self.sums[name] / self.images


@dataclass(frozen=True)
class Figure:
    """A number, its spread over seeds where chance is, what to hold it against, and what else it
    depends on.
    """

    value: float
    sd: float | None = None
    # floors and ceilings, by what they are
    beside: Mapping[str, float] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plane:
    """Points to look at, [N, 2], with their classes, [N] int64, and what each axis is."""

    points: Tensor
    labels: Tensor
    axes: tuple[str, str]


class Family:
    """Figures that are taken together. A subclass says what it lacks, takes, and makes of what was
    taken.

    Its *reference* is what real images alone say, no model asked: floors, and statistics that
    figures are worked out from. It is made of what was taken of them, or `known` from an evaluation
    before; then nothing is taken for it.
    """

    name: ClassVar[str]
    learns: ClassVar[bool] = False  # whether the model is asked about training images too
    # whether its reference is made of training images too, where there are some
    refers: ClassVar[bool] = False
    # whether it also goes through those that were left out: they come last in a whole
    compares: ClassVar[bool] = False
    least: ClassVar[int] = 1  # images that its figures need

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.known = False

    def goes_through(self, which: str) -> bool:
        """Whether something is taken of the images `which`."""
        return {
            HELD_OUT: True,
            TRAIN: self.learns or (self.refers and not self.known),
            LEFT_OUT: self.compares,
        }[which]

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        """Why this method cannot have these figures, in words; "" if it can."""
        raise NotImplementedError

    @classmethod
    def without(cls, subject: Subject) -> dict[str, str]:
        """Figures that this family has of others and not of this one, with the reason."""
        return {}

    def take(self, which: str, seen: Seen) -> Taken:
        """What goes into the figures of one batch of the images `which`."""
        raise NotImplementedError

    def refers_to(self) -> Mapping[str, object]:
        """What its reference depends on besides the images."""
        return {}

    def reference(self, held_out: Taken, train: Taken | None) -> dict[str, Tensor]:
        """What real images alone say, by name; `train` is None where no training images can be
        had.
        """
        return {}

    def figures(
        self, held_out: Taken, train: Taken | None, reference: Mapping[str, Tensor]
    ) -> dict[str, Figure]:
        """The figures by name; `train` is None where no training images can be had, or none were
        gone through.
        """
        raise NotImplementedError

    def some(self, rows: Tensor, count: int) -> Tensor:
        """So many rows at random, or all of fewer, the same ones each time: shards may be
        sorted.
        """
        order = torch.randperm(
            len(rows), generator=torch.Generator().manual_seed(self.subject.asked.seed)
        )
        return rows[order[:count]]

    def maps(self, held_out: Taken, train: Taken | None) -> dict[str, Plane]:
        """What can be drawn of the same, by name."""
        return {}


def summed(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over the images of a batch, [B, ...] -> [...], in float64 on the CPU."""
    return {name: value.double().sum(0).cpu() for name, value in values.items()}


def joined(parts: Iterable[Taken]) -> Taken:
    """Parts in order as one: sums are added, rows follow each other."""
    whole = Taken()
    rows: dict[str, list[Tensor]] = {}
    for part in parts:
        whole.images += part.images
        for name, value in part.sums.items():
            whole.sums[name] = whole.sums[name].add_(value) if name in whole.sums else value.clone()
        for name, value in part.rows.items():
            rows.setdefault(name, []).append(value)
    whole.rows = {name: torch.cat(values) for name, values in rows.items()}
    return whole
