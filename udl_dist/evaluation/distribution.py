"""How like real images generated ones are as a set, seen through a named extractor; never called FID."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from udl_dist.evaluation import distances
from udl_dist.evaluation.family import REAL, TRAIN, Family, Figure, Seen, Subject, Taken
from udl_dist.methods import chance

CLASS_SCORE = "class_score"  # the inception score, by any classifier


class Distribution(Family):
    """As many images are generated as are held out, in several sets; training images beside held-out ones are a floor.

    Less is better of `frechet` and `kernel_distance`, more of the others.
    """

    name: ClassVar[str] = "distribution"
    learns: ClassVar[bool] = True
    extracts: ClassVar[bool] = True
    least: ClassVar[int] = 50

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        return "" if subject.sample else "it cannot sample (udl fit-prior lets an autoencoder)"

    @classmethod
    def without(cls, subject: Subject) -> dict[str, str]:
        return {} if subject.extractor.classes else {
            CLASS_SCORE: f"the extractor ({subject.extractor.name}) is no classifier: make one with udl fit-extractor"
        }  # fmt: skip

    def take(self, which: str, seen: Seen) -> Taken:
        count, extractor = len(seen.batch.images), self.subject.extractor
        rows = {REAL: extractor.features(seen.batch.images) if seen.features is None else seen.features}
        if which != TRAIN and self.subject.sample:
            for number in range(self.subject.asked.seeds):
                keys = chance.keys(self.subject.asked.seed + number, count, seen.start).to(seen.batch.keys.device)
                rows[f"fake {number}"] = extractor.features(self.subject.sample(keys))
        return Taken(count, rows={name: features.float().cpu() for name, features in rows.items()})

    def figures(self, held_out: Taken, train: Taken | None) -> dict[str, Figure]:
        real, extractor = held_out.rows[REAL], self.subject.extractor
        drawn = [self._compared(real, rows) for name, rows in held_out.rows.items() if name.startswith("fake")]
        others = self.some(train.rows[REAL], len(real)) if train else None
        floor = self._compared(real, others) if others is not None and len(others) > distances.NEIGHBOURS else {}
        protocol = {"extractor": extractor.name, "extractor_sha256": extractor.hash, "generated": len(real),
                    "sampled_from": self.subject.sampled_from, "seeds": len(drawn)}  # fmt: skip
        found = {}
        for name in drawn[0]:
            values = torch.tensor([one[name] for one in drawn], dtype=torch.float64)
            beside = {f"{len(others)} training images": floor[name]} if floor and others is not None else {}
            own = {"neighbours": distances.NEIGHBOURS} if name in distances.OF_NEIGHBOURS else {}
            found[name] = Figure(float(values.mean()), float(values.std()) if len(values) > 1 else None, beside,
                                 protocol | own)  # fmt: skip
        return found

    def _compared(self, real: Tensor, fake: Tensor) -> dict[str, float]:
        near = {"frechet": distances.frechet(real, fake), "kernel_distance": distances.kernel(real, fake)}
        extractor = self.subject.extractor
        classes = {CLASS_SCORE: distances.class_score(extractor.logits(fake))} if extractor.classes else {}
        return near | distances.neighbours(real, fake) | classes
