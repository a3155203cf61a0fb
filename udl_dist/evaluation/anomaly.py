"""How well images of classes that training never saw are told from others, by each score that a
method has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from udl_dist.evaluation import outliers as oddness
from udl_dist.evaluation import pca, plain, similarity
from udl_dist.evaluation.metric_group import (
    LEFT_OUT,
    TRAIN,
    Family,
    Figure,
    Seen,
    Subject,
    Taken,
    summed,
)

Scores = dict[str, Tensor]

MOST_NUMBERS = 4096  # in a row whose second moments are taken: those of more would not fit


class Anomaly(Family):
    """AUROC of each score, and what a threshold that was set on half of the normal images does to
    all others.

    Of a code: its squared Mahalanobis distance from those of training images, and its local outlier
    factor among them.
    """

    name: ClassVar[str] = "anomaly"
    learns: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    least: ClassVar[int] = 20

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._encodes = subject.method.can("encode")

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        if not (subject.method.can("encode") or subject.method.can("log_weights")):
            return "it has no score of an image"
        if not subject.left_out:
            return (
                "no class was left out of its training (data.without_labels), of which held-out"
                " images are here"
            )
        return ""

    def take(self, which: str, seen: Seen) -> Taken:
        images, method = seen.batch.images, self.subject.method
        rows = {} if self.known else {"pixels": plain.pixels(images)}
        if self._encodes:
            rows["codes"] = method.encode(images)
        if which == TRAIN:
            return Taken(
                len(images),
                _moments(rows),
                {name: value.float().cpu() for name, value in rows.items()},
            )
        if method.can("reconstruct"):
            rows["reconstruction"] = similarity.mse(method.reconstruct(images), images)
        if method.can("log_weights"):
            rows["negative_elbo"] = method.measure(seen.batch)["negative_elbo"]
        rows["left_out"] = torch.full((len(images),), float(which == LEFT_OUT))
        return Taken(len(images), rows={name: value.cpu() for name, value in rows.items()})

    def refers_to(self) -> dict[str, object]:
        asked = self.subject.asked
        return {
            "left_out": self.subject.left_out,
            "latent_dim": self.subject.latent_dim,
            "pca": self._encodes,
            "neighbours": asked.neighbours,
            "seed": asked.seed,
        }

    def reference(self, held_out: Taken, train: Taken | None) -> dict[str, Tensor]:
        """The AUROCs of PCA with as many numbers and of the pixels themselves."""
        assert train, "a run in which classes were left out has training images"
        odd = held_out.rows["left_out"] > 0
        return {
            what: torch.tensor(oddness.auroc(score[odd], score[~odd]), dtype=torch.float64)
            for what, score in self._floors(held_out, train).items()
        }

    def figures(
        self, held_out: Taken, train: Taken | None, reference: Mapping[str, Tensor]
    ) -> dict[str, Figure]:
        assert train, "a run in which classes were left out has training images"
        odd = held_out.rows["left_out"] > 0
        scores: Scores = {
            name: held_out.rows[name].double()
            for name in ("reconstruction", "negative_elbo")
            if name in held_out.rows
        }
        if self._encodes:
            scores |= self._of_codes(held_out.rows["codes"], train)
        beside = {what: float(value) for what, value in reference.items()}
        left_out = ", ".join(map(str, self.subject.left_out))
        protocol = {
            "left_out": left_out,
            "left_out_n": int(odd.sum()),
            "neighbours": self.subject.asked.neighbours,
            "crowd": min(train.images, oddness.MOST_NEIGHBOURS),
        }
        found = {
            f"anomaly_auroc_{name}": Figure(
                oddness.auroc(score[odd], score[~odd]), None, beside, protocol
            )
            for name, score in scores.items()
        }
        return found | {
            f"anomaly_detected_{name}": self._detected(score[odd], score[~odd], protocol)
            for name, score in scores.items()
        }

    def _of_codes(self, codes: Tensor, train: Taken) -> Scores:
        found = self._crowded("code_outlier_factor", codes, train, "codes")
        if "codes_products" in train.sums:
            found["code_distance"] = oddness.mahalanobis(codes, *_gaussian(train, "codes"))
        return found

    def _floors(self, held_out: Taken, train: Taken) -> Scores:
        """What needs no network."""
        pixels, count = held_out.rows["pixels"], self.subject.latent_dim
        away = pixels.double() - train.mean("pixels")
        found = {"raw pixels, distance from the mean": away.square().sum(1)}
        found |= self._crowded("raw pixels, outlier factor", pixels, train, "pixels")
        if self._encodes:
            kept = pca.principal(_gaussian(train, "pixels")[1], count)
            found[f"PCA of {count} numbers, its error"] = (
                (away - away @ kept @ kept.T).square().sum(1)
            )
        return found

    def _crowded(self, name: str, rows: Tensor, train: Taken, what: str) -> Scores:
        """The outlier factors under one name; none where training images are too few for
        neighbours.
        """
        neighbours = self.subject.asked.neighbours
        if train.images <= neighbours:
            return {}
        crowd = oddness.Crowd.of(self.some(train.rows[what], oddness.MOST_NEIGHBOURS), neighbours)
        return {name: crowd.outlier_factors(rows)}

    def _detected(self, odd: Tensor, normal: Tensor, protocol: dict[str, object]) -> Figure:
        """The part that is found by a threshold from one half of the normal images; the other half
        is the check.
        """
        order = torch.randperm(
            len(normal), generator=torch.Generator().manual_seed(self.subject.asked.seed)
        )
        half = len(normal) // 2
        quantile = self.subject.asked.quantile
        threshold = float(normal[order[:half]].quantile(quantile))
        alarms = float((normal[order[half:]] > threshold).double().mean())
        return Figure(
            float((odd > threshold).double().mean()),
            None,
            {"false alarms": alarms},
            protocol | {"quantile": quantile, "threshold": threshold},
        )


def _gaussian(train: Taken, name: str) -> tuple[Tensor, Tensor]:
    """Mean and covariance of rows, from their sums."""
    mean = train.mean(name)
    return mean, train.mean(f"{name}_products") - mean.outer(mean)


def _moments(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """First and second moments of rows, summed over the images."""
    sums = summed(rows)
    for name, value in rows.items():
        if value.shape[1] <= MOST_NUMBERS:
            sums[f"{name}_products"] = (value.double().T @ value.double()).cpu()
    return sums
