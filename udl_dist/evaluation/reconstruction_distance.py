"""Distances between reconstructions and the very images they are of, by the features of a network.

What the field reports of image tokenizers as rFID; called Fréchet here, since FID is one network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from udl_dist.evaluation.distribution import REAL
from udl_dist.evaluation.io import Metric
from udl_dist.evaluation.metric_group import MetricBatch, MetricGroup, PartialSums, Subject
from udl_dist.evaluation.real_set import gaussian, kernel_values
from udl_dist.methods.metrics.frechet import between

REBUILT = "rebuilt"  # rows of features of the reconstructions
FRECHET, KERNEL = "reconstruction_frechet", "reconstruction_kernel_distance"


class ReconstructionDistance(MetricGroup):
    """Held-out images against their reconstructions, as two sets; both are 0 for equal images."""

    name: ClassVar[str] = "reconstruction_distance"
    least: ClassVar[int] = 50

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        return "" if subject.method.can("reconstruct") else "it cannot reconstruct"

    @classmethod
    def without(cls, subject: Subject) -> dict[str, str]:
        extractor = subject.extractor
        if extractor.sees_detail:
            return {}
        return {KERNEL: f"the extractor ({extractor.name}) cannot see {extractor.cannot_see}"}

    def collect(self, split: str, seen: MetricBatch) -> PartialSums:
        images, extractor = seen.batch.images, self.subject.extractor
        rebuilt = self.subject.method.reconstruct(images, seen.batch.labels).clamp(-1, 1)
        rows = {REAL: extractor.features(images), REBUILT: extractor.features(rebuilt)}
        on_cpu = {name: features.float().cpu() for name, features in rows.items()}
        return PartialSums(len(images), rows=on_cpu)

    def metrics(
        self, held_out: PartialSums, train: PartialSums | None, reference: Mapping[str, Tensor]
    ) -> dict[str, Metric]:
        real, rebuilt, extractor = (
            held_out.rows[REAL],
            held_out.rows[REBUILT],
            self.subject.extractor,
        )
        protocol: dict[str, object] = {
            "extractor": extractor.name,
            "extractor_sha256": extractor.hash,
            "compared": "reconstructions with the same images",
        }
        protocol |= {"cannot_see": extractor.cannot_see} if extractor.cannot_see else {}
        same = {"images and themselves": 0.0}
        distance = between(*gaussian(real), *gaussian(rebuilt))
        found = {FRECHET: Metric(distance, None, same, protocol)}
        # The same rows of both sets, as the estimate needs.
        pairs = [self.random_rows(rows, self.subject.asked.pairs) for rows in (real, rebuilt)]
        if extractor.sees_detail and len(pairs[0]) > 1:
            own = {**protocol, "pairs_of": len(pairs[0])}
            found[KERNEL] = Metric(paired_kernel(*pairs), None, same, own)
        return found


def paired_kernel(real: Tensor, rebuilt: Tensor) -> float:  # [N, F] twice
    """Unbiased squared MMD of N pairs (Gretton et al. 2012, eq. 4), kernel (xᵀy/F + 1)³."""
    # The estimate for independent sets counts each image with its own reconstruction as well: of
    # equal sets it would be below 0.
    count = len(real)

    def between_different(first: Tensor, second: Tensor) -> float:
        total = sum(float(values.sum()) for values in kernel_values(first, second))
        own = float(((first * second).mean(1) + 1).pow(3).sum())
        return (total - own) / (count * (count - 1))

    real, rebuilt = real.double(), rebuilt.double()
    within = between_different(real, real) + between_different(rebuilt, rebuilt)
    return within - 2 * between_different(real, rebuilt)
