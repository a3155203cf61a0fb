"""Distances between sets of generated and real images, in the features of a named extractor.

Not called FID: that name belongs to one Inception network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import ClassVar

import torch
from torch import Tensor

from udl_dist.core import rng
from udl_dist.evaluation.io import ClassMetric, Metric
from udl_dist.evaluation.metric_group import TRAIN, MetricBatch, MetricGroup, PartialSums, Subject
from udl_dist.evaluation.similarity import NEIGHBOURS, RealSet, gaussian
from udl_dist.methods.metrics.frechet import between

LABELS = "labels"
REAL = "real"  # rows of features of the images themselves
FLOOR = "floor of "  # a metric of training images instead of generated ones
CLASS_SCORE = "class_score"  # the inception score, by any classifier
OF_CLASSES = (CLASS_SCORE, "modes", "mode_kl")
AGREEMENT = "label_agreement"
OF_NEIGHBOURS = ("precision", "recall", "density", "coverage")
OF_PAIRS = ("kernel_distance", *OF_NEIGHBOURS)


class Distribution(MetricGroup):
    """Several sets of as many generated images as are held out; training images are the floor.

    `frechet`, `kernel_distance` and `mode_kl` are best at their least, others at their
    greatest.
    """

    name: ClassVar[str] = "distribution"
    higher_is_better: ClassVar = (*OF_NEIGHBOURS, CLASS_SCORE, "modes", AGREEMENT)
    refers: ClassVar[bool] = True
    least: ClassVar[int] = 50

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        return "" if subject.sample else "it cannot sample (udl fit-prior lets an autoencoder)"

    @classmethod
    def without(cls, subject: Subject) -> dict[str, str]:
        extractor, found = subject.extractor, {}
        if not extractor.logits:
            found[", ".join(OF_CLASSES)] = (
                f"the extractor ({extractor.name}) is not a classifier: make one with "
                "udl fit-extractor"
            )
        if extractor.blindness:
            found[", ".join(OF_PAIRS)] = extractor.blindness
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
        rows = {}
        if split != TRAIN and self.subject.method.conditional:
            rows[LABELS] = seen.labels  # generated images are of the same classes
        if rows or not self.known:
            rows[REAL] = extractor.features(seen.batch.images)
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
        sets = [self._compared(real, fake) for fake in rows]
        protocol = {
            **self.subject.extractor.protocol(),
            "generated": held_out.images,
            "sampled_from": self.subject.sampled_from,
            "seeds": len(sets),
        }
        found, within = {}, self._frechet_within_classes(held_out, rows)
        for name in sets[0]:
            values = torch.tensor([one[name] for one in sets], dtype=torch.float64)
            sd = float(values.std()) if len(values) > 1 else None
            floors = {}
            if FLOOR + name in reference:
                who = f"{int(reference['others'])} training images"
                floors[who] = float(reference[FLOOR + name])
            own: dict[str, object] = {"pairs_of": len(real.near)} if name in OF_PAIRS else {}
            own |= {"neighbours": NEIGHBOURS} if name in OF_NEIGHBOURS else {}
            found[name] = Metric(
                float(values.mean()),
                sd,
                floors,
                protocol | own,
                within if name == "frechet" else {},
            )
        return found | self._label_agreement(held_out, rows, protocol)

    def _frechet_within_classes(
        self, held_out: PartialSums, fakes: list[Tensor]
    ) -> dict[str, ClassMetric]:
        """The mean over sets within each class of more images than features.

        With fewer a covariance has not its full rank.
        """
        if LABELS not in held_out.rows:
            return {}
        real, labels, found = held_out.rows[REAL], held_out.rows[LABELS], {}
        for label in sorted(set(labels.tolist())):
            within = labels == label
            if label >= 0 and (count := int(within.sum())) > real.shape[1]:
                own = gaussian(real[within])
                sets = [between(*own, *gaussian(fake[within])) for fake in fakes]
                found[int(label)] = ClassMetric(sum(sets) / len(sets), count)
        return self.by_class(found)

    def _label_agreement(
        self, held_out: PartialSums, fakes: list[Tensor], protocol: Mapping[str, object]
    ) -> dict[str, Metric]:
        """The share of images that the classifier takes for the class they were made for.

        Next to it stands that of real images: a classifier of other classes agrees with few.
        """
        logits, classes = self.subject.extractor.logits, len(self.subject.classes)
        if LABELS not in held_out.rows or not logits:
            return {}
        labels, real = held_out.rows[LABELS], logits(held_out.rows[REAL])
        known = labels >= 0
        if real.shape[1] != classes or not bool(known.any()):
            return {}
        right = torch.stack([logits(fake).argmax(1).cpu() == labels for fake in fakes]).double()
        shares = right[:, known].mean(1)
        within = {}
        for label in sorted(set(labels[known].tolist())):
            of_class = right[:, labels == label]
            within[int(label)] = ClassMetric(float(of_class.mean()), of_class.shape[1])
        floor = float((real.argmax(1).cpu() == labels)[known].double().mean())
        value, sd = float(shares.mean()), float(shares.std()) if len(shares) > 1 else None
        floors = {f"{held_out.images} held-out images": floor}
        return {AGREEMENT: Metric(value, sd, floors, protocol, self.by_class(within))}

    def _compared(self, real: RealSet, fake: Tensor) -> dict[str, float]:
        extractor, found = self.subject.extractor, {"frechet": real.frechet(fake)}
        if extractor.sees_detail:
            found |= real.of_pairs(self._paired(fake))
        if extractor.logits:
            logits = extractor.logits(fake)
            found[CLASS_SCORE] = class_score(logits)
            found["modes"], found["mode_kl"] = modes(logits)
        return found

    def _paired(self, rows: Tensor) -> Tensor:
        """The rows of a set whose distances to all others are computed."""
        return self.random_rows(rows, self.subject.asked.pairs)


def class_score(logits: Tensor) -> float:  # [N, classes]
    """exp of the mean KL of p(class|image) from p(class) (Salimans et al. 2016, section 4)."""
    logs = logits.double().log_softmax(1)
    # nan_to_num: 0 · log 0 counts as 0, for classes whose chance the softmax rounds to 0.
    chances = logs.exp()
    return float((chances * (logs - chances.mean(0).log())).nan_to_num(nan=0.0).sum(1).mean().exp())


# [N, classes]
def modes(logits: Tensor) -> tuple[float, float]:
    """How many classes images fall to, and the KL of their shares from equal ones, in nats.

    As is usual for StackedMNIST (Metz et al. 2017). With few images for each class, the KL is
    above 0 for real images too: compare it with its floor.
    """
    counts = torch.bincount(logits.argmax(1).cpu(), minlength=logits.shape[1]).double()
    shares = counts / counts.sum()
    # xlogy: a class without images adds nothing.
    kl = torch.special.xlogy(shares, shares * len(shares)).sum()
    return float((counts > 0).sum()), float(kl)
