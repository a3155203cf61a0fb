"""The likelihood of images: the ELBO, its terms, and a tighter bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from udl_dist.core import rng
from udl_dist.evaluation.io import ClassMetric, Metric
from udl_dist.evaluation.metric_group import MetricBatch, MetricGroup, PartialSums, Subject, summed
from udl_dist.methods.method import Batch

AT_ONCE = 4096  # latents decoded at a time, for bounded memory
LEVEL = 2 / 255  # the step between two levels of a pixel, in [-1, 1]


class Likelihood(MetricGroup):
    """Negative bounds in nats per image, all constants included; less is better.

    The bound of k latents is the log of their mean weight (Burda et al. 2016, eq. 8), which more
    latents never loosen.
    """

    name: ClassVar[str] = "likelihood"
    higher_is_better: ClassVar = ("active_units",)

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        return "" if subject.method.can("log_weights") else "it has no likelihood, so no ELBO"

    def collect(self, split: str, seen: MetricBatch) -> PartialSums:
        values = self.subject.method.measure(seen.batch)
        if self.subject.asked.bound_samples:
            values |= {"bound": -self._bound(seen.batch)}
        return summed(values, seen.labels)

    def metrics(
        self, held_out: PartialSums, train: PartialSums | None, reference: Mapping[str, Tensor]
    ) -> dict[str, Metric]:
        method, count = self.subject.method, self.subject.asked.bound_samples
        known, by_class = self._known(held_out), dict[str, dict[str, ClassMetric]]()
        for label, one in held_out.classes.items():
            for name, value in self._known(one).items():
                of_class = self.by_class({label: ClassMetric(value, one.images)})
                by_class.setdefault(name, {}).update(of_class)
        elbo, found = known["negative_elbo"], {}
        # Settings that define the bound, such as the likelihood of pixels: bounds of others are
        # not comparable.
        names = method.incomparable.get("negative_elbo", ())
        protocol = {name: getattr(method.settings, name) for name in names}
        bound = float(held_out.mean("bound")) if count else elbo
        floor = {f"bound of {count} latents": bound} if count else {}
        found["negative_elbo"] = Metric(
            elbo, None, floor, protocol | {"latents": 1}, by_class.get("negative_elbo", {})
        )
        protocol["latents"] = count or 1
        if count:
            found[f"iwae_{count}"] = Metric(bound, None, {"negative ELBO": elbo}, dict(protocol))
        found["kl"] = Metric(known["kl"], None, {"collapsed": 0.0}, {}, by_class.get("kl", {}))
        if "active_units" in known:
            every = {"all": float(self.subject.latent_dim)}
            found["active_units"] = Metric(known["active_units"], None, every)
        if levels := method.pixel_levels():
            # A density counts as constant over each of 256 levels, of width 2/255 in [-1, 1].
            bits = bound / (math.prod(self.subject.shape) * math.log(2))
            # Two levels have a probability each, not a density, and 256 may have.
            bits -= 0.0 if levels == 2 or not method.density else math.log2(LEVEL)
            even = {"even chances": math.log2(levels)}
            found["bits_per_dimension"] = Metric(bits, None, even, protocol | {"levels": levels})
        return found

    def _known(self, sums: PartialSums) -> dict[str, float]:
        """The method's metrics of some images."""
        return self.subject.method.metrics(
            {name: sums.mean(name) for name in sums.sums if name != "bound"}
        )

    def _bound(self, batch: Batch) -> Tensor:  # -> [B] float64
        """log of the mean weight of k latents of each image, some latents at a time."""
        count, asked = len(batch.images), self.subject.asked
        marks = rng.keys(asked.seed, asked.bound_samples).to(batch.keys.device)
        total = torch.full((count,), -math.inf, dtype=torch.float64, device=batch.images.device)
        for part in torch.split(marks, max(1, AT_ONCE // count)):
            # The key of a latent comes from the image's key and the latent's, on every rank alike.
            weights = self.subject.method.log_weights(batch, batch.keys ^ part[:, None]).double()
            # log Σ w so that no weight of e^-1000 becomes 0; -inf is the log of an empty sum.
            total = torch.logaddexp(total, weights.logsumexp(0))
        return total - math.log(asked.bound_samples)
