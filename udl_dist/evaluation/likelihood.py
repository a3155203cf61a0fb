"""How likely images are under a method that has a likelihood: the ELBO and its terms, and a tighter
bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from udl_dist.core import rng
from udl_dist.evaluation.metric_group import Family, Figure, Seen, Subject, Taken, summed
from udl_dist.methods import Batch

AT_ONCE = 4096  # images that are decoded at a time, however many latents the bound takes
LEVEL = 2 / 255  # how far apart the values of a pixel are, in [-1, 1]


class Likelihood(Family):
    """Nats per image, all constants included; less is better.

    The bound of k latents is log of their mean weight (Burda et al. 2016, eq. 8); one more latent
    never loosens it.
    """

    name: ClassVar[str] = "likelihood"

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        return "" if subject.method.can("log_weights") else "it has no likelihood, so no ELBO"

    def take(self, which: str, seen: Seen) -> Taken:
        values = self.subject.method.measure(seen.batch)
        if self.subject.asked.bound_samples:
            values |= {"bound": -self._bound(seen.batch)}
        return Taken(len(seen.batch.images), summed(values))

    def figures(
        self, held_out: Taken, train: Taken | None, reference: Mapping[str, Tensor]
    ) -> dict[str, Figure]:
        method, count = self.subject.method, self.subject.asked.bound_samples
        known = method.figures(
            {name: held_out.mean(name) for name in held_out.sums if name != "bound"}
        )
        elbo = known["negative_elbo"]
        settings = {
            name: getattr(method.settings, name)
            for name in method.incomparable.get("negative_elbo", ())
        }
        bound = float(held_out.mean("bound")) if count else elbo
        beside = {f"bound of {count} latents": bound} if count else {}
        found = {"negative_elbo": Figure(elbo, beside=beside, protocol=settings | {"latents": 1})}
        if count:
            found[f"iwae_{count}"] = Figure(
                bound, beside={"negative ELBO": elbo}, protocol=settings | {"latents": count}
            )
        found["kl"] = Figure(known["kl"], beside={"collapsed": 0.0})
        if "active_units" in known:
            found["active_units"] = Figure(
                known["active_units"], beside={"all": float(self.subject.latent_dim)}
            )
        if levels := method.pixel_levels():
            found["bits_per_dimension"] = self._bits(
                bound, levels, settings | {"latents": count or 1}
            )
        return found

    def _bound(self, batch: Batch) -> Tensor:  # -> [B] float64
        """log of the mean weight of k latents of each image, so many at a time that memory stays
        bounded.
        """
        count, at_once = self.subject.asked.bound_samples, max(1, AT_ONCE // len(batch.images))
        marks = rng.keys(self.subject.asked.seed, count).to(batch.keys.device)
        total = torch.full(
            (len(batch.images),), -math.inf, dtype=torch.float64, device=batch.images.device
        )
        for some in torch.split(marks, at_once):
            weights = self.subject.method.log_weights(batch, batch.keys ^ some[:, None]).double()
            total = torch.logaddexp(total, weights.logsumexp(0))
        return total - math.log(count)

    def _bits(self, nats: float, levels: int, settings: dict[str, object]) -> Figure:
        """Bits a pixel and channel; a density is taken to be even over each of 256 values."""
        wide = 0.0 if levels == 2 else math.log2(LEVEL)
        value = nats / (math.prod(self.subject.shape) * math.log(2)) - wide
        return Figure(
            value,
            beside={"even chances": math.log2(levels)},
            protocol=settings | {"levels": levels},
        )
