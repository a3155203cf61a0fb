"""Codes as points in a plane, coloured by their class, as PNG. Knows no model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from udl_dist.evaluation.metric_group import Plane
from udl_dist.inference.outcome import writing

MOST_NAMED = 20  # classes in a legend; of more the colours say which
SIDE, DOTS = 6.5, 110  # inches, dots an inch


def draw(plane: Plane, title: str, path: Path) -> None:
    """Write one map; raise UsageError where that cannot be."""
    figure = Figure(figsize=(SIDE * 1.15, SIDE), layout="constrained")
    axes = figure.subplots()
    points, labels = plane.points.numpy(), plane.labels.numpy()
    classes = np.unique(labels)
    order = np.random.default_rng(0).permutation(len(points))  # no class lies over another
    few = len(classes) <= MOST_NAMED
    shown = np.searchsorted(classes, labels) if few else labels
    size = max(3.0, 40 - len(points) / 60)
    drawn = axes.scatter(
        points[order, 0],
        points[order, 1],
        s=size,
        c=shown[order],
        cmap=_colours(len(classes)),
        linewidths=0,
        alpha=0.75,
    )
    if few:
        tints = drawn.to_rgba(np.arange(len(classes)))
        marks = [
            axes.scatter([], [], color=tint, label=str(name), s=30)
            for tint, name in zip(tints, classes, strict=True)
        ]
        figure.legend(handles=marks, loc="outside right center", title="class", frameon=False)
    else:
        figure.colorbar(drawn, label="class")
    axes.set(title=title, xlabel=plane.axes[0], ylabel=plane.axes[1], aspect="auto")
    axes.grid(True, alpha=0.3)
    with writing(path):
        figure.savefig(path, dpi=DOTS, format="png")


def _colours(classes: int) -> str:
    return "tab10" if classes <= 10 else "tab20" if classes <= MOST_NAMED else "turbo"
