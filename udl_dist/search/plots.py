"""What a search came to, as PNG and SVG below `plots`; beside report/curves.py the only file that knows matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from udl_dist.runs import RunFolder
from udl_dist.search.axes import LATENT, Axis
from udl_dist.search.importance import importance, numbers
from udl_dist.search.journal import Line
from udl_dist.search.objective import Objective
from udl_dist.search.settings import Search
from udl_dist.search.trial import folder_of

SIZE = (7.0, 4.5)
GREY, BEST = "0.75", "tab:red"


def draw(search: Search, lines: Sequence[Line], rungs: Sequence[int], floor: Mapping[int, float]) -> list[Path]:
    """Draw every plot that these trials have something for; return the files."""
    good = [line for line in lines if line.metric is not None]
    if not good:
        return []
    figures = {"curves": _curves(search, lines, rungs), "parallel": _parallel(search, good)}
    if len(search.axes) > 1:
        figures["settings"] = _settings(search, good, floor)
    elif numbers(search.axes[0], good) is not None:
        figures["settings"] = _one_axis(search, good, floor)
    if shares := importance(search, good):
        figures["importance"] = _importance(shares)
    if len(search.settings.metric) > 1:
        figures["front"] = _front(search, good)
    folder = search.folder / "plots"
    folder.mkdir(exist_ok=True)
    files = []
    for name, figure in figures.items():
        for ending in ("png", "svg"):
            files.append(folder / f"{name}.{ending}")
            figure.savefig(files[-1], dpi=120)
    return files


def _new(width: float = SIZE[0]) -> Figure:
    return Figure(figsize=(width, SIZE[1]), layout="constrained")


def _curves(search: Search, lines: Sequence[Line], rungs: Sequence[int]) -> Figure:
    """The metric over images of all trials, and the rungs at which they were stopped."""
    figure = _new()
    axes, name = figure.subplots(), search.settings.metric[0]
    ranked = Objective(search).ranked(lines)
    every: list[float] = []
    for line in sorted(lines, key=lambda line: line is (ranked[0] if ranked else None)):
        points = [(point["images"], point[name]) for point in RunFolder(folder_of(search, line.trial)).points()
                  if name in point]  # fmt: skip
        if points:
            best = bool(ranked) and line is ranked[0]
            images, values = zip(*points, strict=True)
            every += values
            axes.plot(images, values, color=BEST if best else GREY, lw=2 if best else 1, zorder=3 if best else 1)
            mark = {"complete": "o", "stopped": "x", "failed": "v"}[line.state]
            axes.plot(images[-1], values[-1], mark, color=BEST if best else "0.4", ms=4, zorder=4)
    for rung in rungs:
        axes.axvline(rung, color="tab:blue", lw=0.8, ls=":")
    axes.set(xscale="log" if rungs and search.settings.scheduler == "asha" else "linear", xlabel="images", ylabel=name,
             title="trials: o complete, × stopped, dotted: rungs")  # fmt: skip
    _readable(axes, every)
    return figure


def _settings(search: Search, good: Sequence[Line], floor: Mapping[int, float]) -> Figure:
    """Two axes against each other, coloured by the metric; and the metric over the latent size, with PCA's."""
    first, second = _two(search.axes)
    figure = _new(11 if _latent(search) else SIZE[0])
    panels = figure.subplots(1, 2) if _latent(search) else [figure.subplots()]
    axes, losses = panels[0], _shown(good)
    order = np.argsort(-losses)
    x, y = (np.asarray(_places(axis, good), float)[order] for axis in (first, second))
    state = np.array([line.state == "complete" for line in good])[order]
    for part, mark in ((~state, "x"), (state, "o")):
        if part.any():
            dots = axes.scatter(x[part], y[part], c=losses[order][part], marker=mark, s=60, cmap="viridis_r",
                                vmin=losses.min(), vmax=np.quantile(losses, 0.9))  # fmt: skip
    _labelled(axes, first, second)
    axes.set_title("o complete, × stopped")
    figure.colorbar(dots, ax=axes, label=search.settings.metric[0])
    if _latent(search):
        _over_latent(panels[1], search, good, floor)
    return figure


def _one_axis(search: Search, good: Sequence[Line], floor: Mapping[int, float]) -> Figure:
    figure = _new()
    axes, axis = figure.subplots(), search.axes[0]
    if axis.name == LATENT:
        _over_latent(axes, search, good, floor)
        return figure
    axes.plot(_places(axis, good), _shown(good), "o", color="tab:blue")
    _labelled(axes, axis, None)
    axes.set_ylabel(search.settings.metric[0])
    return figure


def _over_latent(axes: Axes, search: Search, good: Sequence[Line], floor: Mapping[int, float]) -> None:
    for state, mark in (("stopped", "x"), ("complete", "o")):
        some = [line for line in good if line.state == state]
        axes.plot([line.settings[LATENT] for line in some], _shown(some), mark, color="tab:blue", label=state)
    if floor and search.settings.metric[0] == "val/mse":
        axes.plot(list(floor), list(floor.values()), color="black", lw=1, label="PCA")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(xlabel=LATENT, ylabel=search.settings.metric[0])
    drawn = list(floor.values()) if axes.lines[-1].get_label() == "PCA" else []
    _readable(axes, [*_shown(good), *drawn])
    axes.legend()


def _importance(shares: Mapping[str, float]) -> Figure:
    figure = _new()
    axes = figure.subplots()
    axes.barh(list(shares)[::-1], list(shares.values())[::-1], color="tab:blue")
    axes.set(xlim=(0, 1), xlabel="share of the variance at the first rung that the axis explains by itself")
    return figure


def _parallel(search: Search, good: Sequence[Line]) -> Figure:
    """Each trial a line through its settings to its metric, the best ones in colour."""
    figure = _new(9)
    axes, losses = figure.subplots(), _shown(good)
    columns = [_unit(axis, good) for axis in search.axes] + [_scaled(_log(losses))]
    ranks = losses.argsort().argsort() / max(1, len(good) - 1)
    for number in np.argsort(-ranks):
        shade = float(ranks[number])
        axes.plot(range(len(columns)), [column[number] for column in columns], lw=2.0 if shade < 0.15 else 0.8,
                  color=BEST if shade < 0.15 else str(0.4 + 0.5 * shade))  # fmt: skip
    names = [*(axis.name for axis in search.axes), search.settings.metric[0]]
    for number, axis in enumerate(search.axes):
        ends = axis.ends()
        for place, value in ((0.0, ends[0]), (1.0, ends[-1])):
            axes.annotate(f"{value:g}" if isinstance(value, int | float) else str(value), (number, place),
                          ha="center", va="top" if place == 0 else "bottom", fontsize=8)  # fmt: skip
    for place, value in ((0.0, losses.min()), (1.0, losses.max())):
        axes.annotate(f"{value:.4g}", (len(columns) - 1, place), ha="center", va="top" if place == 0 else "bottom",
                      fontsize=8)  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    axes.set(yticks=[], ylim=(-0.08, 1.08), title="the best 15 % in red")
    axes.grid(axis="x")
    return figure


def _front(search: Search, good: Sequence[Line]) -> Figure:
    """The first two objectives, and what nothing beats."""
    figure = _new()
    axes, objective = figure.subplots(), Objective(search)
    front = sorted(objective.front(good), key=lambda line: line.values[1])
    axes.plot([line.values[1] for line in good], [line.values[0] for line in good], "o", color=GREY)
    axes.plot([line.values[1] for line in front], [line.values[0] for line in front], "o-", color=BEST, label="front")
    axes.set(xlabel=search.settings.metric[1], ylabel=search.settings.metric[0])
    _readable(axes, [line.values[0] for line in good])
    axes.legend()
    return figure


def _two(axes: Sequence[Axis]) -> tuple[Axis, Axis]:
    """The latent size and the learning rate if they are there, else the first two."""
    wanted = sorted(axes, key=lambda axis: (axis.name != LATENT, axis.name != "train.learning_rate"))
    return wanted[0], wanted[1]


def _latent(search: Search) -> bool:
    return any(axis.name == LATENT for axis in search.axes)


def _shown(lines: Sequence[Line]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([line.values[0] for line in lines], float)


def _places(axis: Axis, lines: Sequence[Line]) -> Sequence[float]:
    """Where the values of an axis are drawn: numbers where they are, others side by side."""
    found = numbers(axis, lines)
    return found if found is not None else [axis.index(line.settings[axis.name]) for line in lines]


def _unit(axis: Axis, lines: Sequence[Line]) -> Any:
    """The same between 0 and 1."""
    places = np.asarray(_places(axis, lines), float)
    ends = np.asarray(_places(axis, [Line(0, "complete", 0, None, {axis.name: end}) for end in axis.ends()]), float)
    if min(ends.min(), places.min()) > 0 and ends.max() / ends.min() > 10:
        places, ends = np.log(places), np.log(ends)
    return (places - ends.min()) / max(1e-12, ends.max() - ends.min())


def _scaled(values: Any) -> Any:
    return (values - values.min()) / max(1e-12, values.max() - values.min())


def _log(values: Any) -> Any:
    return np.log(values) if values.min() > 0 else values


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
        if axis.values:
            numeric = len(ends) == len(axis.values)
            drawn.set_ticks(axis.values if numeric else range(len(axis.values)), [str(value) for value in axis.values])
            drawn.set_ticks([], minor=True)


def _readable(axes: Axes, values: Sequence[float]) -> None:
    """A scale on which the best can be told apart: logarithmic where all are positive, cut above the worst tenth."""
    if not values:
        return
    if min(values) > 0 and max(values) / min(values) > 3:
        axes.set_yscale("log")
        for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatted(FuncFormatter(lambda value, _: f"{value:g}"))
    top, low = float(np.quantile(values, 0.97)), min(values)
    if math.isfinite(top) and top > low:
        axes.set_ylim(low - 0.03 * (top - low) if axes.get_yscale() == "linear" else low / 1.05, top * 1.05)
