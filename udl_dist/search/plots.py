"""Two plots of a search, as PNG and SVG below `plots` and for its page: metric over images,
settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from udl_dist.search.objective import Objective
from udl_dist.search.trial import folder_of
from udl_dist.search.trial_log import TrialResult

SIZE = (7.0, 4.5)
GREY, MARK, BEST = "0.65", "0.5", "tab:red"  # readable on a light and on a dark page
MARKS = {"complete": "o", "stopped": "x", "failed": "v"}
SHADES = LinearSegmentedColormap.from_list("trials", ["#d62728", "#b67ad0", "#4f8fd0"])
LOG_SPAN = 10  # an axis whose ends differ more is logarithmic


def draw(search: Search, results: Sequence[TrialResult], rungs: Sequence[int]) -> None:
    """Draw every plot that these trials have something for."""
    folder = search.folder / "plots"
    with matplotlib.rc_context({"figure.figsize": SIZE}):
        for name, drawing in drawings(search, results, rungs).items():
            folder.mkdir(exist_ok=True)
            figure = drawing()
            for ending in ("png", "svg"):
                figure.savefig(Path(folder / f"{name}.{ending}"), dpi=120)


def drawings(
    search: Search, results: Sequence[TrialResult], rungs: Sequence[int]
) -> dict[str, Callable[[], Figure]]:
    """What can be drawn, by name; size and colours are those that matplotlib has by then."""
    good = [result for result in results if result.metric is not None]
    found: dict[str, Callable[[], Figure]] = {}
    if good:
        found["curves"] = lambda: _curves(search, results, rungs)
    if good and len(search.axes) > 1:
        found["settings"] = lambda: _settings(search, good)
    return found


def _curves(search: Search, results: Sequence[TrialResult], rungs: Sequence[int]) -> Figure:
    """The metric over images of each trial, and the rungs at which trials stop."""
    figure = Figure(layout="constrained")
    axes, name = figure.subplots(), search.settings.metric[0]
    best = Objective(search).ranked(results)[0]
    every: list[float] = []
    for result in results:
        curve = RunFolder(folder_of(search, result.trial)).points()
        points = [(point["images"], point[name]) for point in curve if name in point]
        if not points:
            continue
        images, values = zip(*points, strict=True)
        every += values
        line, dot, width, layer = (BEST, BEST, 2, 3) if result is best else (GREY, MARK, 1, 1)
        axes.plot(images, values, color=line, lw=width, zorder=layer)
        axes.plot(images[-1], values[-1], MARKS[result.state], color=dot, ms=4, zorder=4)
    for rung in rungs:
        axes.axvline(rung, color="tab:blue", lw=0.8, ls=":")
    axes.set_xscale("log" if rungs and search.settings.scheduler == "asha" else "linear")
    axes.set(xlabel="images", ylabel=name, title="o complete, × stopped, dotted: rungs")
    _show_best(axes, every, search.settings.mode == "min")
    return figure


def _settings(search: Search, good: Sequence[TrialResult]) -> Figure:
    """Latent size and learning rate (or two other axes), coloured by the metric; the best on
    top.
    """
    preferred = (LATENT, "train.learning_rate")
    ordered = sorted(search.axes, key=lambda axis: tuple(axis.name != name for name in preferred))
    first, second = ordered[:2]
    figure = Figure(layout="constrained")
    axes, least = figure.subplots(), search.settings.mode == "min"
    values = np.array([result.values[0] for result in good], float)
    # A tenth at the bad end does not count: one diverged trial would take all the colours.
    low, high = np.quantile(values, (0.0, 0.9) if least else (0.1, 1.0))
    x, y = (np.asarray(_numbers(axis, good), float) for axis in (first, second))
    complete = np.array([result.state == "complete" for result in good])
    colours = {"vmin": low, "vmax": high, "cmap": SHADES if least else SHADES.reversed()}
    worst_first = np.argsort(-values if least else values)
    for state, part in (("stopped", ~complete), ("complete", complete)):
        shown = worst_first[part[worst_first]]
        if len(shown):
            dots = axes.scatter(
                x[shown], y[shown], c=values[shown], marker=MARKS[state], s=60, **colours
            )
    _label(axes.xaxis, axes.set_xscale, first)
    _label(axes.yaxis, axes.set_yscale, second)
    axes.set_title("o complete, × stopped")
    figure.colorbar(dots, ax=axes, label=search.settings.metric[0])
    return figure


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _numbers(axis: Axis, results: Sequence[TrialResult]) -> list[float]:
    """Where trials lie on an axis: at their values if they are numbers, else at their index."""
    values = [result.settings[axis.name] for result in results]
    return values if all(map(_is_number, axis.ends())) else [axis.index(value) for value in values]


def _label(drawn: Any, set_scale: Callable[[str], None], axis: Axis) -> None:
    drawn.set_label_text(axis.name)
    ends = axis.ends()
    numeric = all(map(_is_number, ends))
    if numeric and min(ends) > 0 and max(ends) / min(ends) > LOG_SPAN:
        set_scale("log")
        _few_ticks(drawn, max(ends) / min(ends))
    if axis.values:
        drawn.set_ticks(axis.values if numeric else range(len(axis.values)), map(str, axis.values))
        drawn.set_ticks([], minor=True)


def _show_best(axes: Axes, values: Sequence[float], least: bool) -> None:
    """Choose a scale on which the best differ visibly: the worst 3 % are cut off."""
    if not values:
        return
    low, high = min(values), float(np.quantile(values, 0.97)) if least else max(values)
    logarithmic = low > 0 and max(values) / low > 3
    if logarithmic:
        axes.set_yscale("log")
        _few_ticks(axes.yaxis, high / low)
    if math.isfinite(high) and high > low:
        bottom = low / 1.05 if logarithmic else low - 0.03 * (high - low)
        axes.set_ylim(bottom, high * 1.05)


def _few_ticks(axis: Any, span: float) -> None:
    """Numbers on a logarithmic axis that do not overlap."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 300 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
