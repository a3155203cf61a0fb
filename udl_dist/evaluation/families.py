"""Which families of figures there are: whoever runs them knows none by name."""

from __future__ import annotations

from collections.abc import Sequence

from udl_dist.core.config_schema import nearest
from udl_dist.errors import UsageError
from udl_dist.evaluation.anomaly import Anomaly
from udl_dist.evaluation.distribution import Distribution
from udl_dist.evaluation.likelihood import Likelihood
from udl_dist.evaluation.metric_group import Family, Subject
from udl_dist.evaluation.reconstruction import Reconstruction
from udl_dist.evaluation.representation import Representation

FAMILIES: tuple[type[Family], ...] = (
    Reconstruction,
    Likelihood,
    Representation,
    Distribution,
    Anomaly,
)


def chosen(subject: Subject, images: int) -> tuple[list[Family], list[str]]:
    """The families that can be had, and in words why others cannot; raise UsageError for one that
    was asked for.
    """
    names = [family.name for family in FAMILIES]
    if unknown := [name for name in subject.asked.families if name not in names]:
        raise UsageError(f"unknown family of figures {unknown[0]!r}: {nearest(unknown[0], names)}")
    found: list[Family] = []
    notes: list[str] = []
    for family in FAMILIES:
        if why := _lacking(family, subject, images):
            notes.append(f"no {family.name}: {why}")
        else:
            found.append(family(subject))
    has = [family.name for family in found]
    if missing := [
        note for note in notes if note.split(":")[0].removeprefix("no ") in subject.asked.families
    ]:
        raise UsageError(f"{missing[0]}; it has {', '.join(has) or 'none'}")
    asked: Sequence[str] = subject.asked.families
    found = [family for family in found if not asked or family.name in asked]
    single = [
        f"no {name}: {why}" for family in found for name, why in family.without(subject).items()
    ]
    return found, ([] if asked else notes) + single


def _lacking(family: type[Family], subject: Subject, images: int) -> str:
    if why := family.lacking(subject):
        return why
    return (
        f"it needs {family.least} images or more, there are {images}"
        if images < family.least
        else ""
    )
