"""Distances between sets of generated and real images, in the features of a named extractor.

Not called FID: that name belongs to one Inception network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from udl_dist.core import rng
from udl_dist.evaluation.io import Metric
from udl_dist.evaluation.metric_group import TRAIN, MetricBatch, MetricGroup, PartialSums, Subject
from udl_dist.methods.frechet import between

REAL = "real"  # rows of features of the images themselves
FLOOR = "floor of "  # a metric of training images instead of generated ones
CLASS_SCORE = "class_score"  # the inception score, by any classifier
NEIGHBOURS = 5  # Naeem et al. 2020, section 4
OF_NEIGHBOURS = ("precision", "recall", "density", "coverage")
OF_PAIRS = ("kernel_distance", *OF_NEIGHBOURS)
ROWS = 200  # rows of a distance matrix at a time; with 1000 most time went into allocation


class Distribution(MetricGroup):
    """Several sets of as many generated images as are held out; training images are the floor.

    `frechet` and `kernel_distance` are best at their least, the others at their greatest.
    """

    name: ClassVar[str] = "distribution"
    higher_is_better: ClassVar = ("precision", "recall", "density", "coverage", "class_score")
    refers: ClassVar[bool] = True
    least: ClassVar[int] = 50

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        return "" if subject.sample else "it cannot sample (udl fit-prior lets an autoencoder)"

    @classmethod
    def without(cls, subject: Subject) -> dict[str, str]:
        extractor, found = subject.extractor, {}
        if not extractor.logits:
            found[CLASS_SCORE] = (
                f"the extractor ({extractor.name}) is not a classifier: make one with "
                "udl fit-extractor"
            )
        if not extractor.sees_detail:
            why = f"the extractor ({extractor.name}) cannot see {extractor.cannot_see}"
            found[", ".join(OF_PAIRS)] = why
        return found

    def refers_to(self) -> dict[str, object]:
        asked, extractor = self.subject.asked, self.subject.extractor
        return {
            "extractor": [extractor.name, extractor.hash],
            "pairs": asked.pairs,
            "seed": asked.seed,
        }

    def collect(self, split: str, seen: MetricBatch) -> PartialSums:
        count, extractor = len(seen.batch.images), self.subject.extractor
        # Features of real images serve the reference alone.
        rows = {} if self.known else {REAL: extractor.features(seen.batch.images)}
        if split != TRAIN and self.subject.sample:
            for number in range(self.subject.asked.seeds):
                # By the number of the image, so that any world size makes the same images.
                keys = rng.keys(self.subject.asked.seed + number, count, seen.start)
                # Of the classes of the real images, in a conditional method.
                images = self.subject.sample(keys.to(seen.batch.keys.device), seen.batch.labels)
                rows[f"fake {number}"] = extractor.features(images)
        on_cpu = {name: features.float().cpu() for name, features in rows.items()}
        return PartialSums(count, rows=on_cpu)

    def reference(self, held_out: PartialSums, train: PartialSums | None) -> dict[str, Tensor]:
        rows = held_out.rows[REAL]
        real = RealSet.of(rows, self._paired(rows))
        # As many as are held out: a Fréchet distance falls with the number of images (real against
        # real 2.1 at 1,000, 0.16 at 10,000), so only equal numbers make a floor.
        others = self.random_rows(train.rows[REAL], len(rows)) if train else rows[:0]
        floors = self._compared(real, others) if len(others) > NEIGHBOURS else {}
        found = {**vars(real), "others": torch.tensor(len(others))}
        for name, value in floors.items():
            found[FLOOR + name] = torch.tensor(value, dtype=torch.float64)
        return found

    def metrics(
        self, held_out: PartialSums, train: PartialSums | None, reference: Mapping[str, Tensor]
    ) -> dict[str, Metric]:
        real = RealSet(**{field.name: reference[field.name] for field in fields(RealSet)})
        rows = [rows for name, rows in held_out.rows.items() if name.startswith("fake")]
        # One set of generated images for each seed; the sd below is over these sets.
        sets, extractor = [self._compared(real, fake) for fake in rows], self.subject.extractor
        protocol: dict[str, object] = {
            "extractor": extractor.name,
            "extractor_sha256": extractor.hash,
            "generated": held_out.images,
            "sampled_from": self.subject.sampled_from,
            "seeds": len(sets),
        }
        protocol |= {"cannot_see": extractor.cannot_see} if extractor.cannot_see else {}
        found = {}
        for name in sets[0]:
            values = torch.tensor([one[name] for one in sets], dtype=torch.float64)
            sd = float(values.std()) if len(values) > 1 else None
            floors = {}
            if FLOOR + name in reference:
                who = f"{int(reference['others'])} training images"
                floors[who] = float(reference[FLOOR + name])
            own: dict[str, object] = {"pairs_of": len(real.near)} if name in OF_PAIRS else {}
            own |= {"neighbours": NEIGHBOURS} if name in OF_NEIGHBOURS else {}
            found[name] = Metric(float(values.mean()), sd, floors, protocol | own)
        return found

    def _compared(self, real: RealSet, fake: Tensor) -> dict[str, float]:
        extractor, found = self.subject.extractor, {"frechet": real.frechet(fake)}
        if extractor.sees_detail:
            found |= real.of_pairs(self._paired(fake))
        if extractor.logits:
            found[CLASS_SCORE] = class_score(extractor.logits(fake))
        return found

    def _paired(self, rows: Tensor) -> Tensor:
        """The rows of a set whose distances to all others are computed."""
        return self.random_rows(rows, self.subject.asked.pairs)


@dataclass(frozen=True)
class RealSet:
    """A set of real rows, with the parts of distances that it alone decides."""

    mean: Tensor  # [F] float64
    covariance: Tensor  # [F, F] float64
    near: Tensor  # [P, F]: the rows whose pairs are used
    radii: Tensor  # [P] float64: the distance of the k-th nearest other row
    within: Tensor  # [] float64: the mean of the kernel over pairs

    @classmethod
    def of(cls, rows: Tensor, near: Tensor) -> RealSet:  # [N, F], [P, F]
        """With no more `near` rows than neighbours, no pairs are used."""
        if len(near) <= NEIGHBOURS:
            # Empty `near` is how of_pairs knows it; tensors, because a reference is a safetensors
            # file.
            return cls(*gaussian(rows), near[:0], torch.empty(0), torch.zeros(()))
        within = torch.tensor(_within(near), dtype=torch.float64)
        return cls(*gaussian(rows), near, _radii(near.double()), within)

    def frechet(self, fake: Tensor) -> float:  # [N, F]
        """The Fréchet distance of the Gaussians of both sets."""
        return between(self.mean, self.covariance, *gaussian(fake))

    def of_pairs(self, fake: Tensor) -> dict[str, float]:  # [P, F]
        """Kernel distance and metrics of neighbours; empty for too few rows."""
        if min(len(self.near), len(fake)) <= NEIGHBOURS:
            return {}
        return {"kernel_distance": self.kernel(fake), **self.neighbours(fake)}

    def kernel(self, fake: Tensor) -> float:  # [P, F]
        """Unbiased squared MMD under the kernel (xᵀy/F + 1)³ (Bińkowski et al. 2018, section 3)."""
        # E k(x, x') + E k(y, y') - 2 E k(x, y). The estimate has no bias, so it can be below 0.
        across = sum(
            float(values.sum()) for values in kernel_values(self.near.double(), fake.double())
        )
        return float(self.within) + _within(fake) - 2 * across / (len(self.near) * len(fake))

    def neighbours(self, fake: Tensor) -> dict[str, float]:  # [P, F]
        """Precision, recall (Kynkäänniemi et al. 2019), density, coverage (Naeem et al. 2020)."""
        real, fake = self.near.double(), fake.double()
        precise = dense = 0
        recalled = torch.zeros(len(real), dtype=torch.uint8, device=real.device)
        nearest = torch.full((len(real),), torch.inf, dtype=torch.float64, device=real.device)
        for distances, radii in zip(
            _distances(fake, real), torch.split(_radii(fake), ROWS), strict=True
        ):
            inside = distances <= self.radii
            # As bytes: any() is many times slower.
            # Precision and density: generated rows within the radius of real ones. Recall: real
            # rows within the radius of a generated one. Coverage: real rows whose radius holds
            # one.
            precise += int(inside.view(torch.uint8).amax(1).sum())
            dense += int(inside.count_nonzero())
            recalled |= (distances <= radii[:, None]).view(torch.uint8).amax(0)
            nearest = torch.minimum(nearest, distances.amin(0))
        return {
            "precision": precise / len(fake),
            "recall": int(recalled.sum()) / len(real),
            "density": dense / (NEIGHBOURS * len(fake)),
            "coverage": int((nearest <= self.radii).sum()) / len(real),
        }


def class_score(logits: Tensor) -> float:  # [N, classes]
    """exp of the mean KL of p(class|image) from p(class) (Salimans et al. 2016, section 4)."""
    logs = logits.double().log_softmax(1)
    # nan_to_num: 0 · log 0 counts as 0, for classes whose chance the softmax rounds to 0.
    chances = logs.exp()
    return float((chances * (logs - chances.mean(0).log())).nan_to_num(nan=0.0).sum(1).mean().exp())


def gaussian(rows: Tensor) -> tuple[Tensor, Tensor]:
    # view: with one feature torch.cov gives a scalar.
    return rows.double().mean(0), torch.cov(rows.double().T).view(rows.shape[1], -1)


def _within(rows: Tensor) -> float:
    """The mean of the kernel over all pairs of two different rows."""
    rows, count = rows.double(), len(rows)
    total = sum(float(values.sum()) for values in kernel_values(rows, rows))
    # The kernel of each row with itself, (|x|²/F + 1)³, which the unbiased estimate leaves out.
    same = (rows.square().mean(1) + 1).pow(3).sum()
    return (total - float(same)) / (count * (count - 1))


def kernel_values(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    """(xᵀy/F + 1)³ of all pairs, in float64 rows, some at a time."""
    one = torch.ones((), dtype=first.dtype, device=first.device)
    for part in torch.split(first, ROWS):
        # Product, scale and 1 in one pass, the power in place: memory traffic sets the time here.
        yield torch.addmm(one, part, second.T, alpha=1 / first.shape[1]).pow_(3)


def _radii(rows: Tensor) -> Tensor:  # [N, F] -> [N]
    """The distance of the k-th nearest other row."""
    nearest = [
        # One more, since the nearest row of each is itself.
        distances.topk(NEIGHBOURS + 1, largest=False).values
        for distances in _distances(rows, rows)
    ]
    return torch.cat(nearest)[:, -1]


def _distances(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    for part in torch.split(first, ROWS):
        yield torch.cdist(part, second)
