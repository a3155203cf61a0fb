"""`udl evaluate`: metrics of a model on held-out images, each with its protocol and floors."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from udl_dist.core import files
from udl_dist.core.config_schema import as_path
from udl_dist.evaluation import io
from udl_dist.evaluation.metric_group import (
    HELD_OUT,
    LEFT_OUT,
    TRAIN,
    CodeMap,
    MetricGroup,
    PartialSums,
)
from udl_dist.evaluation.settings import OWN, MetricSettings
from udl_dist.inference.measuring import MeasuredPart, Measuring
from udl_dist.inference.model import Model
from udl_dist.inference.outcome import Outcome, Progress, outcome, writing

MOST_NAMED = 20  # classes in the legend of a map; more have a colour bar
SIDE, DOTS = 6.5, 110  # of a map: inches, dots per inch
Parts = dict[tuple[str, int], MeasuredPart]


def evaluate(model: Model, asked: MetricSettings, out: Path | None, progress: Progress) -> Outcome:
    """Measure, and write `evaluation.json` to `out`, by default into the run folder."""
    if asked.extractor not in OWN:  # absolute: workers may have another working directory
        asked = replace(asked, extractor=str(as_path(asked.extractor).absolute()))
    measuring = Measuring(model, asked)
    # References are of real images alone, metrics of this model; both come from the same pass.
    metrics, maps = _measured(measuring, progress)
    # An exported folder is verified by its hashes and is not changed.
    path = out or (model.origin.folder / io.NAME if model.origin.experiment else None)
    figures = {name: metric.as_dict() for name, metric in metrics.items()}
    said, drawn = [*io.table(figures), *measuring.notes], []
    if path:
        with writing(path):  # what was measured with the same weights stays
            path.parent.mkdir(parents=True, exist_ok=True)
            both = {"figures": io.of_weights(path, model.origin.weights) | figures}
            # ensure_ascii: protocols have signs such as ×, for people to read.
            files.write_whole(path, json.dumps(both, indent=1, ensure_ascii=False))
        said.append(f"each with its protocol: {path}")
        for name, code_map in maps.items():
            count = len(code_map.points)
            title = f"{count:,} held-out images in {model.latent_dim} numbers each"
            drawn.append(str(path.parent / f"map_{name}.png"))
            draw_map(code_map, title, Path(drawn[-1]))
            said.append(f"a map of {name}: {drawn[-1]}")
    return outcome(
        model, said, figures=figures, skipped=measuring.notes, path=str(path or ""), maps=drawn
    )


def _measured(
    measuring: Measuring, progress: Progress
) -> tuple[dict[str, io.Metric], dict[str, CodeMap]]:
    """Metrics and maps; references come from the cache, or are computed and cached."""
    cache = measuring.reference_cache()
    groups = measuring.groups
    # First of all: a group whose reference is known collects less, or nothing of training images.
    known = {group.name: found for group in groups if (found := cache.read(group))}
    measuring.know(known.keys())
    made: Parts = {}
    # In the order in which workers finish; _joined restores the order of the parts.
    for place, part in _parts(measuring, list(known)):
        made[place] = part
        progress(len(made), len(measuring.parts()))
    damaged_parts = any(part.damaged for part in made.values())
    metrics: dict[str, io.Metric] = {}
    maps: dict[str, CodeMap] = {}
    for group in groups:
        held_out = _joined(made, measuring, group, (HELD_OUT, LEFT_OUT))
        train = None
        # goes_through is False for a group that needed training images only for its cached
        # reference.
        if group.goes_through(TRAIN) and TRAIN in measuring.streams:
            train = _joined(made, measuring, group, (TRAIN,))
        reference = known.get(group.name)
        if reference is None:
            # Sorted, as the cache returns it: metrics have the same bytes with and without a
            # cache.
            reference = dict(sorted(group.reference(held_out, train).items()))
            # Damaged records may be repaired before the next evaluation: nothing is cached then.
            if reference and not (damaged_parts or measuring.damaged):
                cache.write(group, reference)
        shared = _protocol(measuring, group)
        for name, metric in group.metrics(held_out, train, reference).items():
            metrics[name] = replace(metric, protocol={**shared, **metric.protocol})
        maps |= group.maps(held_out, train)
    return metrics, maps


def part_maker(
    model: Model, asked: MetricSettings, known: Collection[str]
) -> Callable[[str, int], MeasuredPart]:
    """A function that makes one part of an evaluation, in a Ray worker."""
    measuring = Measuring(model, asked)
    measuring.know(known)
    return measuring.part


def _parts(
    measuring: Measuring, known: Collection[str]
) -> Iterator[tuple[tuple[str, int], MeasuredPart]]:
    """Make all parts, here or in Ray workers."""
    parts, asked = measuring.parts(), measuring.asked
    if not asked.workers:
        yield from ((place, measuring.part(*place)) for place in parts)
        return
    from udl_dist.inference import ray_workers

    # Names of groups only: references are used here, where the parts come together.
    yield from ray_workers.share(
        part_maker, measuring.model, (asked, known), parts, asked.workers, asked.address
    )


def _joined(
    made: Parts, measuring: Measuring, group: MetricGroup, splits: Collection[str]
) -> PartialSums:
    """All parts of a group in their order: the last bit does not depend on which came first."""
    # Held-out parts come before left-out ones, as `measuring.streams` has them.
    places = [place for place in measuring.parts() if place[0] in splits]
    through = (place for place in places if group.goes_through(place[0]))
    return PartialSums.joined(made[place].collected[group.name] for place in through)


def _protocol(measuring: Measuring, group: MetricGroup) -> dict[str, Any]:
    """What every metric of a group depends on."""
    model, asked = measuring.model, measuring.asked
    channels, height, width = model.shape
    # Two metrics are comparable where all of this is equal, but for the model
    # (reporting/compare.py).
    shared = {
        "data": measuring.streams[HELD_OUT].fingerprint,
        "split": "all of the source" if asked.data else HELD_OUT,
        "n": measuring.images[HELD_OUT],
        "size": f"{channels}×{height}×{width}",
        "seed": asked.seed,
        "checkpoint": model.origin.images,
        "weights": model.origin.weights,
    }
    if TRAIN in measuring.streams and (group.learns or group.refers):
        shared["train"] = measuring.streams[TRAIN].fingerprint
        shared["train_n"] = measuring.images[TRAIN]
    return shared


def draw_map(code_map: CodeMap, title: str, path: Path) -> None:
    """Write codes as points in a plane, coloured by class; raise UsageError if that fails."""
    from matplotlib.figure import Figure  # takes a while to import

    figure = Figure(figsize=(SIDE * 1.15, SIDE), layout="constrained")
    axes = figure.subplots()
    points, labels = code_map.points.numpy(), code_map.labels.numpy()
    classes = np.unique(labels)
    # A fixed seed: the same codes give the same picture.
    order = np.random.default_rng(0).permutation(len(points))  # no class lies over another
    few = len(classes) <= MOST_NAMED
    # Few classes get consecutive colours, even if their labels are 3 and 70.
    shown = np.searchsorted(classes, labels) if few else labels
    colours = "tab10" if len(classes) <= 10 else "tab20" if few else "turbo"
    drawn = axes.scatter(
        points[order, 0],
        points[order, 1],
        # Smaller points where there are many; 3 is still visible.
        s=max(3.0, 40 - len(points) / 60),
        c=shown[order],
        cmap=colours,
        linewidths=0,
        alpha=0.75,
    )
    if few:
        # An empty scatter for each class, since one scatter has one entry in a legend.
        tints = zip(drawn.to_rgba(np.arange(len(classes))), classes, strict=True)
        marks = [axes.scatter([], [], color=tint, label=str(name), s=30) for tint, name in tints]
        figure.legend(handles=marks, loc="outside right center", title="class", frameon=False)
    else:
        figure.colorbar(drawn, label="class")
    axes.set(title=title, xlabel=code_map.axes[0], ylabel=code_map.axes[1], aspect="auto")
    axes.grid(True, alpha=0.3)
    with writing(path):
        figure.savefig(path, dpi=DOTS, format="png")
