"""How like real images generated ones are as a set, seen through a named extractor; never called
FID.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import ClassVar

import torch
from torch import Tensor

from udl_dist.core import rng
from udl_dist.evaluation import distances
from udl_dist.evaluation.distances import Real
from udl_dist.evaluation.metric_group import TRAIN, Family, Figure, Seen, Subject, Taken

REAL = "real"  # rows of features of the images themselves
FLOOR = "floor of "  # what training images have in the place of generated ones
CLASS_SCORE = "class_score"  # the inception score, by any classifier


class Distribution(Family):
    """As many images are generated as are held out, in several sets; training images beside
    held-out ones are a floor.

    Less is better of `frechet` and `kernel_distance`, more of the others.
    """

    name: ClassVar[str] = "distribution"
    refers: ClassVar[bool] = True
    least: ClassVar[int] = 50

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        return "" if subject.sample else "it cannot sample (udl fit-prior lets an autoencoder)"

    @classmethod
    def without(cls, subject: Subject) -> dict[str, str]:
        extractor = subject.extractor
        found = {}
        if not extractor.classes:
            found[CLASS_SCORE] = (
                f"the extractor ({extractor.name}) is no classifier: make one with udl"
                " fit-extractor"
            )
        if not extractor.sees_detail:
            names = ", ".join(distances.OF_PAIRS)
            found[names] = f"the extractor ({extractor.name}) cannot see {extractor.cannot_see}"
        return found

    def refers_to(self) -> dict[str, object]:
        asked, extractor = self.subject.asked, self.subject.extractor
        return {
            "extractor": [extractor.name, extractor.hash],
            "pairs": asked.pairs,
            "seed": asked.seed,
        }

    def take(self, which: str, seen: Seen) -> Taken:
        count, extractor = len(seen.batch.images), self.subject.extractor
        rows = {} if self.known else {REAL: extractor.features(seen.batch.images)}
        if which != TRAIN and self.subject.sample:
            for number in range(self.subject.asked.seeds):
                keys = rng.keys(self.subject.asked.seed + number, count, seen.start).to(
                    seen.batch.keys.device
                )
                rows[f"fake {number}"] = extractor.features(self.subject.sample(keys))
        return Taken(count, rows={name: features.float().cpu() for name, features in rows.items()})

    def reference(self, held_out: Taken, train: Taken | None) -> dict[str, Tensor]:
        rows = held_out.rows[REAL]
        real = Real.of(rows, self._near(rows))
        others = self.some(train.rows[REAL], len(rows)) if train else rows[:0]
        floor = self._compared(real, others) if len(others) > distances.NEIGHBOURS else {}
        return (
            vars(real)
            | {"others": torch.tensor(len(others))}
            | {
                FLOOR + name: torch.tensor(value, dtype=torch.float64)
                for name, value in floor.items()
            }
        )

    def figures(
        self, held_out: Taken, train: Taken | None, reference: Mapping[str, Tensor]
    ) -> dict[str, Figure]:
        real, extractor = (
            Real(**{field.name: reference[field.name] for field in fields(Real)}),
            self.subject.extractor,
        )
        drawn = [
            self._compared(real, rows)
            for name, rows in held_out.rows.items()
            if name.startswith("fake")
        ]
        protocol = {
            "extractor": extractor.name,
            "extractor_sha256": extractor.hash,
            "generated": held_out.images,
            "sampled_from": self.subject.sampled_from,
            "seeds": len(drawn),
        }
        protocol |= {"cannot_see": extractor.cannot_see} if extractor.cannot_see else {}
        found = {}
        for name in drawn[0]:
            values = torch.tensor([one[name] for one in drawn], dtype=torch.float64)
            floor = reference.get(FLOOR + name)
            beside = (
                {}
                if floor is None
                else {f"{int(reference['others'])} training images": float(floor)}
            )
            own: dict[str, object] = (
                {"pairs_of": len(real.near)} if name in distances.OF_PAIRS else {}
            )
            own |= {"neighbours": distances.NEIGHBOURS} if name in distances.OF_NEIGHBOURS else {}
            found[name] = Figure(
                float(values.mean()),
                float(values.std()) if len(values) > 1 else None,
                beside,
                protocol | own,
            )
        return found

    def _compared(self, real: Real, fake: Tensor) -> dict[str, float]:
        extractor = self.subject.extractor
        classes = (
            {CLASS_SCORE: distances.class_score(extractor.logits(fake))}
            if extractor.classes
            else {}
        )
        pairs = real.of_pairs(self._near(fake)) if extractor.sees_detail else {}
        return {"frechet": real.frechet(fake), **pairs, **classes}

    def _near(self, rows: Tensor) -> Tensor:
        """Those of a set that pairs are made of."""
        return self.some(rows, self.subject.asked.pairs)
