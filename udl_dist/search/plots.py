"""Plots of a search for its folder and its page: the metric over images, the settings, a front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from udl_dist.runs.run_folder import RunFolder
from udl_dist.search.axes import LATENT, Axis
from udl_dist.search.config import Search
from udl_dist.search.objective import Objective
from udl_dist.search.trial import folder_of
from udl_dist.search.trial_log import TrialResult

# In inches of 120 dots: 840 x 540 pixels as PNG.
SIZE = (7.0, 4.5)
GREY, BEST = "0.6", "tab:red"  # readable on a light and on a dark page
# From best to worst; readable on both pages too.
SHADES = LinearSegmentedColormap.from_list("trials", ["#d62728", "#b67ad0", "#4f8fd0"])
# Stopped trials are open: their metric is of fewer images.
MARKS = {"complete": ("o", "full"), "stopped": ("o", "none"), "failed": ("v", "full")}
MARKED = "filled: complete, open: stopped at a rung"
WORST = 0.1  # share of values outside the scale: a trial may have diverged
LOG_SPAN = 10  # ratio above which a scale is logarithmic


def draw(search: Search, results: Sequence[TrialResult], rungs: Sequence[int]) -> None:
    """Write every plot that these trials have data for, as PNG and SVG."""
    folder = search.folder / "plots"
    with matplotlib.rc_context({"figure.figsize": SIZE}):
        for name, drawing in drawings(search, results, rungs).items():
            folder.mkdir(exist_ok=True)
            figure = drawing()
            for ending in ("png", "svg"):
                figure.savefig(folder / f"{name}.{ending}", dpi=120)


def drawings(
    search: Search, results: Sequence[TrialResult], rungs: Sequence[int]
) -> dict[str, Callable[[], Figure]]:
    """A function for each plot, by name; it takes size and colours of matplotlib when called."""
    good = [result for result in results if result.metric is not None]
    found: dict[str, Callable[[], Figure]] = {}
    if good:
        found["curves"] = lambda: _curves(search, results, rungs)
    if good and len(search.axes) > 1:
        # Needs two axes; with one the curves show all.
        found["settings"] = lambda: _settings(search, good)
    if good and len(search.settings.metric) > 1:
        found["front"] = lambda: _front(search, good)
    return found


def _curves(search: Search, results: Sequence[TrialResult], rungs: Sequence[int]) -> Figure:
    """The metric over images of each trial, and the rungs at which trials stop."""
    figure = Figure(layout="constrained")
    axes, name = figure.subplots(), search.settings.metric[0]
    # Drawn only if a result is good, so there is a best one.
    best = Objective(search).ranked(results)[0]
    every: list[float] = []
    for result in results:
        curve = RunFolder(folder_of(search, result.trial)).points()
        # Most points are of training; only those of a validation have the metric.
        points = [(point["images"], point[name]) for point in curve if name in point]
        if points:
            images, values = zip(*points, strict=True)
            every += values
            # The best curve on top of all others, whatever its number.
            look = {"color": BEST, "zorder": 3} if result is best else {"color": GREY}
            axes.plot(images, values, **look)
            mark, fill = MARKS[result.state]
            axes.plot(images[-1], values[-1], mark, ms=4, fillstyle=fill, **look)
    for rung in rungs:
        axes.axvline(rung, color="tab:blue", lw=0.8, ls=":")
    # Rungs that are powers of the reduction would lie at the left edge of a linear scale.
    axes.set_xscale("log" if rungs and search.settings.scheduler != "median" else "linear")
    axes.set(xlabel="images", ylabel=name, title=f"{MARKED}; dotted: rungs")
    if every:
        low, high = _scale(every, search)
        # An ELBO may be negative, which no logarithm shows.
        axes.set_yscale("log" if low > 0 and high / low > LOG_SPAN else "linear")
        least = search.sign > 0
        # Only the bad end is cut; what is best always stays in view.
        axes.set_ylim(None if least else low, high if least else None)
    return figure


def _settings(search: Search, good: Sequence[TrialResult]) -> Figure:
    """Latent size and learning rate, or two other axes, coloured by rank; the best on top.

    By rank, since on a scale of the metric the good ones look alike. Trials of other lengths do not
    compare: the final order has complete ones first, then those that were stopped last.
    """
    preferred = (LATENT, "train.learning_rate")
    # False sorts before True: the preferred axes come first, in their order.
    ordered = sorted(search.axes, key=lambda axis: tuple(axis.name != name for name in preferred))
    figure = Figure(layout="constrained")
    axes, best_first = figure.subplots(), Objective(search).ranked(good)
    scale = ScalarMappable(Normalize(1, len(good)), SHADES)
    colours = scale.to_rgba(np.arange(1, len(good) + 1))
    # Later dots are drawn on top.
    for result, colour in reversed([*zip(best_first, colours, strict=True)]):
        x, y = (_numbers(axis, [result]) for axis in ordered[:2])
        mark, fill = MARKS[result.state]
        axes.plot(x, y, mark, color=colour, fillstyle=fill)
    _label(axes.xaxis, axes.set_xscale, ordered[0])
    _label(axes.yaxis, axes.set_yscale, ordered[1])
    axes.set_title(MARKED)
    figure.colorbar(scale, ax=axes, label=f"rank by {search.settings.metric[0]}")
    return figure


def _front(search: Search, good: Sequence[TrialResult]) -> Figure:
    """The first two objectives of each trial, and the line of those that no other beats."""
    figure = Figure(layout="constrained")
    axes, names = figure.subplots(), search.settings.metric
    best = sorted(Objective(search).front(good), key=lambda result: result.values[1])
    for shown, colour, line in ((good, GREY, ""), (best, BEST, "-")):
        points = [(result.values[1], result.values[0]) for result in shown]
        axes.plot(*zip(*points, strict=True), color=colour, ls=line, marker="o", ms=5, lw=1.0)
    for set_scale, place in ((axes.set_xscale, 1), (axes.set_yscale, 0)):
        values = [result.values[place] for result in good]
        if min(values) > 0 and max(values) / min(values) > LOG_SPAN:
            set_scale("log")
    axes.set(xlabel=names[1], ylabel=names[0], title="line: the Pareto front")
    return figure


def _scale(values: Sequence[float], search: Search) -> tuple[float, float]:
    """The least and the greatest value of a scale."""
    parts = (0, 1 - WORST) if search.sign > 0 else (WORST, 1)
    low, high = np.quantile(values, parts)
    return float(low), float(high)


def _numbers(axis: Axis, results: Sequence[TrialResult]) -> list[float]:
    """The positions of trials on an axis: their values if they are numbers, else the index."""
    values = [result.settings[axis.name] for result in results]
    return values if _is_numeric(axis) else [axis.index(value) for value in values]


def _is_numeric(axis: Axis) -> bool:
    return all(type(end) in (int, float) for end in axis.ends())


def _label(drawn: Any, set_scale: Callable[[str], None], axis: Axis) -> None:
    drawn.set_label_text(axis.name)
    ends, numeric = axis.ends(), _is_numeric(axis)
    if numeric and min(ends) > 0 and max(ends) / min(ends) > LOG_SPAN:
        set_scale("log")
    if axis.values:
        drawn.set_ticks(axis.values if numeric else range(len(ends)), [str(end) for end in ends])
        # A logarithmic scale adds minor ticks of its own between the values of a choice.
        drawn.set_ticks([], minor=True)
