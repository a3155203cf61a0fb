"""Figures as they are kept in `evaluation.json`, and as lines for people; needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

NAME = "evaluation.json"


def of_weights(path: Path, weights: str) -> dict[str, Any]:
    """The figures in a file that were measured of these weights; none where it is not there or
    makes no sense.
    """
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["figures"]
        return {
            name: entry for name, entry in before.items() if entry["protocol"]["weights"] == weights
        }
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


def shared_protocols(
    protocols: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all protocols have alike, and what is alike in those that have it: two or more, but not
    all.
    """
    every = list(protocols)
    values: dict[str, list[Any]] = {}
    for protocol in every:
        for name, value in protocol.items():
            values.setdefault(name, []).append(value)
    alike = {
        name: found[0] for name, found in values.items() if all(one == found[0] for one in found)
    }
    of_all = {name: value for name, value in alike.items() if len(values[name]) == len(every)}
    of_some = {name: value for name, value in alike.items() if 1 < len(values[name]) < len(every)}
    return of_all, of_some
