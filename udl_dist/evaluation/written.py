"""Figures as they are kept in `evaluation.json`, and as lines for people; needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "evaluation.json"


def of_weights(path: Path, weights: str) -> dict[str, Any]:
    """The figures in a file that were measured of these weights; none where it is not there or makes no sense."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["figures"]
        return {name: entry for name, entry in before.items() if entry["protocol"]["weights"] == weights}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def table(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each figure: its value, its spread, and what to hold it against."""
    wide = max(len(name) for name in figures)
    lines = []
    for name, entry in figures.items():
        spread = f" ± {entry['sd']:.2g}" if entry["sd"] is not None else ""
        beside = ", ".join(f"{what} {value:.5g}" for what, value in (entry["floor"] or {}).items())
        value = f"{entry['value']:.5g}{spread}"
        lines.append(f"{name:<{wide}}  {value:<18}  {beside}".rstrip())
    return lines
