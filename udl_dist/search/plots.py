"""What a search came to, as PNG and SVG below `plots`; matplotlib is known here, in
report/curves.py, using/maps.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from udl_dist.runs.run_folder import RunFolder
from udl_dist.search.axes import LATENT, Axis
from udl_dist.search.config import Search
from udl_dist.search.coordinates import logarithm, losses, places, scaled, shown, unit
from udl_dist.search.importance import importance, numbers
from udl_dist.search.objective import Objective
from udl_dist.search.trial import folder_of
from udl_dist.search.trial_log import Line

SIZE = (7.0, 4.5)
GREY, MARK, BEST = "0.65", "0.5", "tab:red"  # of a page in light or dark
# readable on both
SHADES = LinearSegmentedColormap.from_list("trials", ["#d62728", "#b67ad0", "#4f8fd0"])
Drawing = Callable[[], Figure]


def draw(
    search: Search, lines: Sequence[Line], rungs: Sequence[int], floor: Mapping[int, float]
) -> list[Path]:
    """Draw every plot that these trials have something for; return the files."""
    folder = search.folder / "plots"
    files = []
    with matplotlib.rc_context({"figure.figsize": SIZE}):
        for name, drawing in drawings(search, lines, rungs, floor).items():
            folder.mkdir(exist_ok=True)
            figure = drawing()
            for ending in ("png", "svg"):
                files.append(folder / f"{name}.{ending}")
                figure.savefig(files[-1], dpi=120)
    return files


def drawings(
    search: Search, lines: Sequence[Line], rungs: Sequence[int], floor: Mapping[int, float]
) -> dict[str, Drawing]:
    """What can be drawn of these trials, by name; each as large, and in the colours, as matplotlib
    is told by then.
    """
    good = [line for line in lines if line.metric is not None]
    if not good:
        return {}
    found: dict[str, Drawing] = {"curves": lambda: _curves(search, lines, rungs)}
    if len(search.axes) > 1:
        found["settings"] = lambda: _settings(search, good)
    elif search.axes[0].name != LATENT and numbers(search.axes[0], good) is not None:
        found["settings"] = lambda: _one_axis(search, good)
    if any(axis.name == LATENT for axis in search.axes):
        found["latent"] = lambda: _latent(search, good, floor)
    if len(search.settings.metric) > 1:
        found["front"] = lambda: _front(search, good)
    found["parallel"] = lambda: _parallel(search, good)
    if shares := importance(search, good):
        found["importance"] = lambda: _importance(shares)
    return found


def _new() -> Figure:
    return Figure(layout="constrained")


def _curves(search: Search, lines: Sequence[Line], rungs: Sequence[int]) -> Figure:
    """The metric over images of all trials, and the rungs at which they were stopped."""
    figure = _new()
    axes, name = figure.subplots(), search.settings.metric[0]
    ranked = Objective(search).ranked(lines)
    every: list[float] = []
    for line in sorted(lines, key=lambda line: line is (ranked[0] if ranked else None)):
        points = [
            (point["images"], point[name])
            for point in RunFolder(folder_of(search, line.trial)).points()
            if name in point
        ]
        if points:
            best = bool(ranked) and line is ranked[0]
            images, values = zip(*points, strict=True)
            every += values
            axes.plot(
                images,
                values,
                color=BEST if best else GREY,
                lw=2 if best else 1,
                zorder=3 if best else 1,
            )
            mark = {"complete": "o", "stopped": "x", "failed": "v"}[line.state]
            axes.plot(images[-1], values[-1], mark, color=BEST if best else MARK, ms=4, zorder=4)
    for rung in rungs:
        axes.axvline(rung, color="tab:blue", lw=0.8, ls=":")
    axes.set(
        xscale="log" if rungs and search.settings.scheduler == "asha" else "linear",
        xlabel="images",
        ylabel=name,
        title="trials: o complete, × stopped, dotted: rungs",
    )
    _readable(axes, every, search.settings.mode == "min")
    return figure


def _settings(search: Search, good: Sequence[Line]) -> Figure:
    """Two axes against each other, coloured by the metric."""
    first, second = _two(search.axes)
    figure = _new()
    axes, values, best_low = figure.subplots(), shown(good), search.settings.mode == "min"
    order = np.argsort(-losses(search, good))
    low, high = (
        (values.min(), np.quantile(values, 0.9))
        if best_low
        else (np.quantile(values, 0.1), values.max())
    )
    x, y = (np.asarray(places(axis, good), float)[order] for axis in (first, second))
    state = np.array([line.state == "complete" for line in good])[order]
    for part, mark in ((~state, "x"), (state, "o")):
        if part.any():
            dots = axes.scatter(
                x[part],
                y[part],
                c=values[order][part],
                marker=mark,
                s=60,
                vmin=low,
                vmax=high,
                cmap=SHADES if best_low else SHADES.reversed(),
            )
    _labelled(axes, first, second)
    axes.set_title("o complete, × stopped")
    figure.colorbar(dots, ax=axes, label=search.settings.metric[0])
    return figure


def _one_axis(search: Search, good: Sequence[Line]) -> Figure:
    figure = _new()
    axes, axis = figure.subplots(), search.axes[0]
    axes.plot(places(axis, good), shown(good), "o", color="tab:blue")
    _labelled(axes, axis, None)
    axes.set_ylabel(search.settings.metric[0])
    return figure


def _latent(search: Search, good: Sequence[Line], floor: Mapping[int, float]) -> Figure:
    """The metric over the latent size, with what PCA reaches where that is the same kind of
    figure.
    """
    figure = _new()
    axes = figure.subplots()
    for state, mark in (("stopped", "x"), ("complete", "o")):
        some = [line for line in good if line.state == state]
        if some:
            axes.plot(
                [line.settings[LATENT] for line in some],
                shown(some),
                mark,
                color="tab:blue",
                label=state,
            )
    drawn = floor if search.settings.metric[0] == "val/mse" else {}
    if drawn:
        axes.plot(
            list(drawn),
            list(drawn.values()),
            color=matplotlib.rcParams["text.color"],
            lw=1,
            label="PCA",
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(xlabel=LATENT, ylabel=search.settings.metric[0])
    _readable(axes, [*shown(good), *drawn.values()], search.settings.mode == "min")
    if drawn:  # the worst trials may be out of sight, no part of this line
        axes.set_ylim(top=max(axes.get_ylim()[1], 1.05 * max(drawn.values())))
    axes.legend()
    return figure


def _importance(shares: Mapping[str, float]) -> Figure:
    figure = _new()
    axes = figure.subplots()
    axes.barh(list(shares)[::-1], list(shares.values())[::-1], color="tab:blue")
    axes.set(xlim=(0, 1), xlabel="share of the variance at the first rung")
    return figure


def _parallel(search: Search, good: Sequence[Line]) -> Figure:
    """Each trial a line through its settings to its metric, the best ones in colour."""
    figure = _new()
    axes, values = figure.subplots(), shown(good)
    columns = [unit(axis, good) for axis in search.axes] + [scaled(logarithm(values))]
    ranks = losses(search, good).argsort().argsort() / max(1, len(good) - 1)
    for number in np.argsort(-ranks):
        shade = float(ranks[number])
        best = shade < 0.15
        axes.plot(
            range(len(columns)),
            [column[number] for column in columns],
            lw=2.0 if best else 0.8,
            color=BEST if best else MARK,
            alpha=1.0 if best else 0.9 - 0.6 * shade,
        )
    names = [*(axis.name for axis in search.axes), search.settings.metric[0]]
    for number, axis in enumerate(search.axes):
        ends = axis.ends()
        for place, value in ((0.0, ends[0]), (1.0, ends[-1])):
            axes.annotate(
                f"{value:g}" if isinstance(value, int | float) else str(value),
                (number, place),
                ha="center",
                va="top" if place == 0 else "bottom",
                fontsize=8,
            )
    for place, value in ((0.0, values.min()), (1.0, values.max())):
        axes.annotate(
            f"{value:.4g}",
            (len(columns) - 1, place),
            ha="center",
            va="top" if place == 0 else "bottom",
            fontsize=8,
        )
    axes.set_xticks(
        range(len(names)), [name.replace(".", ".\n").replace("/", "/\n") for name in names]
    )
    axes.set(yticks=[], ylim=(-0.08, 1.08), title="the best 15 % in red")
    axes.grid(axis="x")
    return figure


def _front(search: Search, good: Sequence[Line]) -> Figure:
    """The first two objectives, and what nothing beats."""
    figure = _new()
    axes, objective = figure.subplots(), Objective(search)
    front = sorted(objective.front(good), key=lambda line: line.values[1])
    axes.plot([line.values[1] for line in good], [line.values[0] for line in good], "o", color=GREY)
    axes.plot(
        [line.values[1] for line in front],
        [line.values[0] for line in front],
        "o-",
        color=BEST,
        label="front",
    )
    axes.set(xlabel=search.settings.metric[1], ylabel=search.settings.metric[0])
    _readable(axes, [line.values[0] for line in good], search.settings.mode == "min")
    axes.legend()
    return figure


def _two(axes: Sequence[Axis]) -> tuple[Axis, Axis]:
    """The latent size and the learning rate if they are there, else the first two."""
    wanted = sorted(
        axes, key=lambda axis: (axis.name != LATENT, axis.name != "train.learning_rate")
    )
    return wanted[0], wanted[1]


def _labelled(axes: Axes, first: Axis, second: Axis | None) -> None:
    for axis, set_scale, name in (
        (first, axes.set_xscale, axes.set_xlabel),
        (second, axes.set_yscale, axes.set_ylabel),
    ):
        if axis is None:
            continue
        name(axis.name)
        ends = [end for end in axis.ends() if isinstance(end, int | float)]
        if ends and min(ends) > 0 and max(ends) / min(ends) > 10:
            set_scale("log")
        drawn = axes.xaxis if axis is first else axes.yaxis
        if drawn.get_scale() == "log":
            _few_ticks(drawn, max(ends) / min(ends))
        if axis.values:
            numeric = len(ends) == len(axis.values)
            drawn.set_ticks(
                axis.values if numeric else range(len(axis.values)),
                [str(value) for value in axis.values],
            )
            drawn.set_ticks([], minor=True)


def _readable(axes: Axes, values: Sequence[float], least_is_best: bool = True) -> None:
    """A scale on which the best can be told apart: logarithmic where all are positive, the worst
    are cut off.
    """
    if not values:
        return
    low, top = min(values), float(np.quantile(values, 0.97)) if least_is_best else max(values)
    if low > 0 and max(values) / low > 3:
        axes.set_yscale("log")
        _few_ticks(axes.yaxis, top / low)
    if math.isfinite(top) and top > low:
        axes.set_ylim(
            low - 0.03 * (top - low) if axes.get_yscale() == "linear" else low / 1.05, top * 1.05
        )


def _few_ticks(axis: Any, span: float) -> None:
    """Numbers on a logarithmic axis that do not run into each other."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 300 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
