"""Curves as pictures: SVG in the colours of the page, PNG for a comparison."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from udl_dist.errors import UsageError

# Placeholders for the page's colours until the SVG is in the page.
INK, LINE = "#010203", "#040506"
# Readable on white and on dark: the page has both.
COLOURS = ("#2f7ed8", "#e0762a", "#2a9d62", "#b3529e", "#8a7a1f", "#d0434b", "#4aa3b5", "#7a6be0")
STYLES = ("-", "--", "-.", ":")
# The first values of a loss are often a hundred times the later ones.
START = 0.1  # part of a run that may be cut off
FLATTENED = 3.0  # times the height of the rest, from which on it is
PANEL = (4.8, 3.4)  # default inches of a figure
MOST_POINTS = 500  # of one curve: more are not visible
Curve = tuple[Sequence[float], Sequence[float]]  # images and values


def as_svg(curves: Mapping[str, Curve], number: int) -> str:
    """One panel, curves by label; its ids differ by `number` from those of other panels of a
    page.
    """
    with drawing(number) as new:
        # Inches; on the page only the ratio matters, since width and height are removed.
        figure = new(4.4, 2.6)
        _plot(figure.subplots(), curves)
        return svg_of(figure)


def svg_of(figure: Any) -> str:
    """A figure as markup for a page; call it within the `drawing` that made the figure."""
    content = io.StringIO()
    figure.savefig(
        # No date: the same curves give the same bytes.
        content,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None},
    )
    svg = content.getvalue()
    # What is removed: XML head and metadata, which name other hosts, and a fixed size. A screen
    # reader gets the text next to the plot.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(
        r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true" focusable="false"', svg, count=1
    )
    # The placeholders become the colours of the page, in light and in dark.
    return svg.replace(INK, "currentColor").replace(LINE, "var(--line)")


def as_png(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Panels with a title each, two in a row, as one PNG."""
    rows = -(-len(panels) // 2)
    with drawing(0, "#222222", "#d8d8d8") as new:
        # A PNG is looked at outside the page, so it has fixed colours on white.
        figure = new(11, 3.4 * rows)
        grid = figure.subplots(rows, 2, squeeze=False)
        for axes, (title, curves) in zip(grid.flat, panels.items(), strict=False):
            _plot(axes, curves)
            # parse_math: a name with two $ is not a formula.
            axes.set_title(title, fontsize=10, parse_math=False)
        # Where the last row is half full.
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format="png", dpi=110, facecolor="white")
        except OSError as error:
            why = error.strerror or error
            raise UsageError(f"cannot write {str(path)!r} ({why}): name another place") from None


def settled(curves: Mapping[str, Curve]) -> tuple[float, float] | None:
    """Limits of the curves after the first tenth, if that would flatten the rest; None if not."""
    # In images, not in points: runs report at different intervals.
    last = max((images[-1] for images, _ in curves.values()), default=0.0)
    everything = [value for _, values in curves.values() for value in values]
    later = [
        value
        for images, values in curves.values()
        for place, value in zip(images, values, strict=True)
        if place > last * START
    ]
    height = max(later, default=0.0) - min(later, default=0.0)
    # A constant end would be enlarged to noise.
    if height == 0 or max(everything) - min(everything) <= FLATTENED * height:
        return None
    return min(later) - height / 10, max(later) + height / 10


@contextlib.contextmanager
def drawing(
    number: int, ink: str = INK, line: str = LINE
) -> Iterator[Callable[[float, float], Any]]:
    """Gives a function that makes a figure of a width and a height; its settings are local."""
    import matplotlib
    from matplotlib.figure import Figure

    # Only within the block: the caller may use matplotlib for its own plots.
    with matplotlib.rc_context(
        {
            # Text stays text: searchable, in the font of the page, and small.
            "svg.fonttype": "none",
            # Ids of clip paths are hashes of this: equal ids on one page would clip other plots.
            "svg.hashsalt": f"udl-{number}",
            "text.color": ink,
            "axes.edgecolor": line,
            "axes.labelcolor": ink,
            "xtick.color": ink,
            "ytick.color": ink,
            "grid.color": line,
            "axes.grid": True,
            "grid.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 9,
            "legend.frameon": False,
            "figure.figsize": PANEL,
            # A matplotlibrc of the user may ask for LaTeX or a font that is missing here.
            "text.usetex": False,
            "font.family": "sans-serif",
        }
    ):
        # Figure and not pyplot, which would choose a window system and hold on to all figures.
        yield lambda width, height: Figure((width, height), layout="constrained")


def _plot(axes: Any, curves: Mapping[str, Curve]) -> None:
    for number, (label, (images, values)) in enumerate(curves.items()):
        # The same step for images and values; the page stays small.
        step = max(1, len(images) // MOST_POINTS)
        # A single point has no line to be seen by.
        few = len(images) <= 20
        shown = label if not label.startswith("_") else f" {label}"  # a leading underscore hides it
        axes.plot(
            images[::step],
            values[::step],
            # 8 colours, then the same ones dashed.
            color=COLOURS[number % len(COLOURS)],
            label=shown.replace("$", r"\$"),
            linestyle=STYLES[number // len(COLOURS) % len(STYLES)],
            linewidth=1.6,
            marker="o" if few else None,
            markersize=3,
        )
    limits = settled(curves)
    if limits:
        axes.set_ylim(*limits)
    axes.set_xlabel("images (the start lies outside)" if limits else "images")
    axes.xaxis.set_major_formatter(_thousands)
    axes.margins(x=0.02)
    if len(curves) > 1:
        axes.legend(fontsize=8)


def _thousands(value: float, place: int) -> str:
    """A count of images, abbreviated."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
