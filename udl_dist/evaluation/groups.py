"""The list of metric groups, and the choice among them; other modules know none by name."""

from __future__ import annotations

from udl_dist.core.config_schema import nearest
from udl_dist.errors import UsageError
from udl_dist.evaluation.anomaly import Anomaly
from udl_dist.evaluation.distribution import Distribution
from udl_dist.evaluation.likelihood import Likelihood
from udl_dist.evaluation.metric_group import MetricGroup, Subject
from udl_dist.evaluation.reconstruction import Reconstruction, ReconstructionDistance
from udl_dist.evaluation.representation import Representation

# Also the order of metrics in every table.
GROUPS: tuple[type[MetricGroup], ...] = (
    Reconstruction,
    ReconstructionDistance,
    Likelihood,
    Representation,
    Distribution,
    Anomaly,
)


def sign(metric: str) -> int:
    """1, or -1 where more is better: the signed value of a metric is least at its best."""
    return -1 if any(metric.startswith(group.higher_is_better) for group in GROUPS) else 1


def choose_groups(subject: Subject, images: int) -> tuple[list[MetricGroup], list[str]]:
    """The groups that the subject allows, and notes on those that are left out.

    Raises UsageError for a requested group that this subject cannot have.
    """
    names, asked = [group.name for group in GROUPS], subject.asked.families
    if unknown := [name for name in asked if name not in names]:
        raise UsageError(f"unknown metric group {unknown[0]!r}: {nearest(unknown[0], names)}")
    lacking = {}
    for group in GROUPS:
        why = group.lacking(subject)
        if not why and images < group.least:
            why = f"it needs {group.least} images or more, there are {images}"
        if why:
            lacking[group.name] = why
    if missing := [name for name in lacking if name in asked]:
        has = ", ".join(name for name in names if name not in lacking) or "none"
        raise UsageError(f"no {missing[0]}: {lacking[missing[0]]}; it has {has}")
    wanted = asked or names
    found = [one(subject) for one in GROUPS if one.name in wanted and one.name not in lacking]
    # Single metrics that a chosen group cannot have; the group itself is still measured.
    for chosen in found:
        lacking |= chosen.without(subject)
    # To a user who asked for some groups the others are no news.
    notes = [f"no {name}: {why}" for name, why in lacking.items() if name not in names or not asked]
    return found, notes
