"""How well each score of a method separates images of classes that training never saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from udl_dist.evaluation import pca, similarity
from udl_dist.evaluation.fitted import MOST_CODES, ReferenceCodes
from udl_dist.evaluation.io import Metric
from udl_dist.evaluation.metric_group import (
    LEFT_OUT,
    TRAIN,
    MetricBatch,
    MetricGroup,
    PartialSums,
    Subject,
    sklearn_missing,
)

Scores = dict[str, Tensor]

MOST_FEATURES = 4096  # of a row with second moments: 4096² doubles are 128 MiB
RIDGE = 1e-6  # share of the mean variance added to each, against directions without variance
LEAST_VARIANCE = 1e-10  # where rows are equal, the ridge would be 0


class Anomaly(MetricGroup):
    """AUROC of each score, and the share detected above a threshold set on normal images.

    Scores of a code: its squared Mahalanobis distance from those of training images, and its local
    outlier factor among them.
    """

    name: ClassVar[str] = "anomaly"
    higher_is_better: ClassVar = ("anomaly",)
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
                "no class was left out of its training (data.without_labels), or there are no "
                "held-out images of one"
            )
        return ""

    @classmethod
    def without(cls, subject: Subject) -> dict[str, str]:
        why = sklearn_missing()
        return {"anomaly_auroc_code_outlier_factor": why} if why else {}

    def collect(self, split: str, seen: MetricBatch) -> PartialSums:
        images, method = seen.batch.images, self.subject.method
        # Pixels serve the reference alone; where it is cached they need not be collected.
        rows = {} if self.known else {"pixels": pca.pixels(images)}
        if self._encodes:
            rows["codes"] = method.codes(images)
        # Training images are what codes are compared with: no score of their own is needed.
        if split == TRAIN:
            on_cpu = {name: value.float().cpu() for name, value in rows.items()}
            return PartialSums(len(images), _moments(rows), on_cpu)
        if method.can("reconstruct"):
            rebuilt = method.reconstruct(images, seen.batch.labels)
            rows["reconstruction"] = similarity.mse(rebuilt, images)
        if method.can("log_weights"):
            rows["negative_elbo"] = method.measure(seen.batch)["negative_elbo"]
        # Held-out and left-out images are joined into one set of rows; this column separates them.
        rows["left_out"] = torch.full((len(images),), float(split == LEFT_OUT))
        return PartialSums(len(images), rows={name: value.cpu() for name, value in rows.items()})

    def refers_to(self) -> dict[str, object]:
        asked, subject = self.subject.asked, self.subject
        return {
            "left_out": subject.left_out,
            "latent_dim": subject.latent_dim,
            "pca": self._encodes,
            "neighbours": asked.neighbours,
            "seed": asked.seed,
        }

    def reference(self, held_out: PartialSums, train: PartialSums | None) -> dict[str, Tensor]:
        """The AUROCs of raw pixels, and of PCA with as many components as a code has numbers."""
        assert train, "a run in which classes were left out has training images"
        pixels, count = held_out.rows["pixels"], self.subject.latent_dim
        # [N, F]: what is left of the pixels without the mean training image.
        away = pixels.double() - train.mean("pixels")
        scores = {"raw pixels, distance from the mean": away.square().sum(1)}
        scores |= self._outlier_factors("raw pixels, outlier factor", "pixels", held_out, train)
        if self._encodes:
            basis = pca.principal(_gaussian(train, "pixels")[1], count)
            scores[f"PCA of {count} numbers, its error"] = (
                (away - away @ basis @ basis.T).square().sum(1)
            )
        left_out = held_out.rows["left_out"] > 0
        aurocs = {name: auroc(score[left_out], score[~left_out]) for name, score in scores.items()}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in aurocs.items()}

    def metrics(
        self, held_out: PartialSums, train: PartialSums | None, reference: Mapping[str, Tensor]
    ) -> dict[str, Metric]:
        assert train, "a run in which classes were left out has training images"
        rows, left_out = held_out.rows, held_out.rows["left_out"] > 0
        own = ("reconstruction", "negative_elbo")
        scores = {name: rows[name].double() for name in own if name in rows}
        if self._encodes:
            scores |= self._outlier_factors("code_outlier_factor", "codes", held_out, train)
        # Absent where codes are wider than MOST_FEATURES.
        if "codes_products" in train.sums:
            scores["code_distance"] = mahalanobis(rows["codes"], *_gaussian(train, "codes"))
        floors = {what: float(value) for what, value in reference.items()}
        protocol = {
            "left_out": ", ".join(map(str, self.subject.left_out)),
            "left_out_n": int(left_out.sum()),
            "neighbours": self.subject.asked.neighbours,
            "reference_codes": min(train.images, MOST_CODES),
        }
        aurocs, detected = {}, {}
        for name, score in scores.items():
            unseen, normal = score[left_out], score[~left_out]
            aurocs[f"anomaly_auroc_{name}"] = Metric(auroc(unseen, normal), None, floors, protocol)
            detected[f"anomaly_detected_{name}"] = self._detected(unseen, normal, protocol)
        return aurocs | detected

    def _outlier_factors(
        self, name: str, of: str, held_out: PartialSums, train: PartialSums
    ) -> Scores:
        """The factors by name; none for too few images, or without scikit-learn."""
        neighbours = self.subject.asked.neighbours
        # A row is not its own neighbour, so there must be more rows than neighbours.
        if train.images <= neighbours or sklearn_missing():
            return {}
        codes = ReferenceCodes.fit(self.random_rows(train.rows[of], MOST_CODES), neighbours)
        return {name: codes.outlier_factors(held_out.rows[of])}

    def _detected(self, left_out: Tensor, normal: Tensor, protocol: dict[str, object]) -> Metric:
        """The share of left-out images above a threshold, set on half of the normal images."""
        # The other half gives the rate of false alarms: on the first it is 1 - quantile by choice.
        seeded = torch.Generator().manual_seed(self.subject.asked.seed)
        order, half = torch.randperm(len(normal), generator=seeded), len(normal) // 2
        quantile = self.subject.asked.quantile
        threshold = float(normal[order[:half]].quantile(quantile))
        alarms = float((normal[order[half:]] > threshold).double().mean())
        detected = float((left_out > threshold).double().mean())
        own = {"quantile": quantile, "threshold": threshold}
        return Metric(detected, None, {"false alarms": alarms}, protocol | own)


def auroc(outliers: Tensor, normal: Tensor) -> float:  # [N], [M]
    """The chance that an outlier scores above a normal row (Fawcett 2006, section 7); ties half."""
    # (wins + ties/2) / pairs by binary search, without the matrix of all pairs.
    ordered = normal.double().sort().values
    below = torch.searchsorted(ordered, outliers.double())
    up_to = torch.searchsorted(ordered, outliers.double(), right=True)
    return float((below + up_to).double().sum() / (2 * len(outliers) * len(normal)))


def mahalanobis(rows: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:  # [N, Z] -> [N] float64
    """The squared distance from a Gaussian, measured by its covariance."""
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=LEAST_VARIANCE)
    # (x-µ)ᵀ Σ⁻¹ (x-µ) = |L⁻¹ (x-µ)|² with Σ = L Lᵀ; no inverse is computed.
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(mean), dtype=torch.float64))
    away = torch.linalg.solve_triangular(factor, (rows.double() - mean).T, upper=False)
    distances: Tensor = away.square().sum(0)
    return distances


def _gaussian(train: PartialSums, name: str) -> tuple[Tensor, Tensor]:
    """Mean and covariance of rows, from their sums."""
    # cov = E[x xᵀ] - E[x] E[x]ᵀ, in float64: the two terms may be almost equal.
    mean = train.mean(name)
    return mean, train.mean(f"{name}_products") - mean.outer(mean)


def _moments(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """First and second moments of rows, summed over images."""
    sums = {name: value.double().sum(0).cpu() for name, value in rows.items()}
    for name, value in rows.items():
        if value.shape[1] <= MOST_FEATURES:
            sums[f"{name}_products"] = (value.double().T @ value.double()).cpu()
    return sums
