"""What a run folder says of itself, for pages and comparisons: whatever of it can be read, and what
cannot, in words.

Nothing here is believed to be whole: a run may have been cut short anywhere. Knows no torch, Ray or
method by name.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udl_dist import methods
from udl_dist.core import config_schema as settings
from udl_dist.errors import UdlError, UsageError
from udl_dist.evaluation import written
from udl_dist.runs import environment
from udl_dist.runs.run_folder import RunFolder, winner_of
from udl_dist.storage.uris import public

MOST_ENVIRONMENTS = 20  # the last ones
LONGEST_FILE = 2**26  # bytes of what is read whole


@dataclass(frozen=True)
class Kept:
    """One checkpoint: the images before it and its held-out figures."""

    images: int
    figures: Mapping[str, float]
    data: str
    held_out: int = 0  # images that the figures are means over; 0: not told


@dataclass(frozen=True)
class Figure:
    """One figure of an evaluation with all that it depends on."""

    value: float
    deviation: float | None
    floor: Mapping[str, Any]
    protocol: Mapping[str, Any]


@dataclass
class Account:
    """Everything read; what is missing or damaged is empty here and named in `faults`."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)  # by dotted name
    points: list[dict[str, float]] = field(default_factory=list)
    checkpoints: list[Kept] = field(default_factory=list)
    pictures: dict[str, list[tuple[int, Path]]] = field(default_factory=dict)
    evaluation: dict[str, Figure] = field(default_factory=dict)
    # of checkpoints, by images trained on
    followed: dict[int, dict[str, Figure]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    shards: dict[str, str] = field(default_factory=dict)
    # images before it, and in words
    environments: list[tuple[int, str]] = field(default_factory=list)
    complete: bool = False
    failure: str = ""  # why the run ended before its end, if it refused to go on
    images: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def method(self) -> str:
        return str(self.settings.get("method.name", "unknown"))

    @property
    def best_by(self) -> str:
        """The held-out figure whose least value is best; "" if there is none."""
        asked, own = str(self.settings.get("run.best") or ""), self.kind.best
        return asked or (f"val/{own}" if own else "")

    @property
    def kind(self) -> type[methods.Method]:
        """The class of its method; the bare contract where that is not known here."""
        try:
            return methods.find(self.method)
        except UdlError:
            return methods.Method

    @property
    def data(self) -> str:
        """The fingerprint of what it learned from; "" if no checkpoint says it."""
        return self.checkpoints[-1].data if self.checkpoints else ""

    @property
    def held_out_images(self) -> int:
        """How many images the held-out figures are means over; 0 if no checkpoint says it."""
        return self.checkpoints[-1].held_out if self.checkpoints else 0

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """The images and values of one curve, where it has any that can be drawn."""
        pairs = [
            (point["images"], point[name]) for point in self.points if _is_number(point.get(name))
        ]
        return [float(images) for images, _ in pairs], [float(value) for _, value in pairs]

    def followed_curve(self, name: str) -> tuple[list[float], list[float]]:
        """The same of a figure that `udl evaluate --follow` measured."""
        kept = {
            images: figures[name].value
            for images, figures in self.followed.items()
            if name in figures
        }
        return [float(images) for images in kept], list(kept.values())

    def held_out(self) -> dict[str, tuple[float, float, int]]:
        """Of each held-out figure its last value, its value at the best point, and the images of
        that point.
        """
        validated = [
            point for point in self.points if any(name.startswith("val/") for name in point)
        ]
        if not validated:
            return {}
        scored = [point for point in validated if _is_number(point.get(self.best_by))]
        best = min(scored, key=lambda point: point[self.best_by]) if scored else validated[-1]
        last = validated[-1]
        return {
            name: (last[name], best.get(name, math.nan), int(best["images"]))
            for name in sorted(last)
            if name.startswith("val/")
        }

    def protocol(self) -> dict[str, Any]:
        """What the held-out figures depend on beside the weights: the data, and settings that say
        what is measured.
        """
        measured_by = sorted({name for names in self.kind.incomparable.values() for name in names})
        names = [
            "data.held_out",
            "data.held_out_fraction",
            *(f"method.{name}" for name in measured_by),
        ]
        return {"data": self.data, "n": self.held_out_images} | {
            name: self.settings.get(name) for name in names
        }


def read(folder: Path | str) -> Account:
    """Read what there is, of a search what its winner's run is; raise UsageError for a folder that
    is no run at all.
    """
    run = RunFolder(winner_of(settings.as_path(str(folder))))
    if not any(
        path.exists() for path in (run.experiment, run.curves, run.checkpoints, run.pictures)
    ):
        raise UsageError(
            f"{run.path} is no run folder: it has no experiment.toml, curves or checkpoints"
        )
    account = Account(run.path)
    account.settings = public(settings.flatten(_toml(run.experiment, account)))
    account.points = _points(run, account)
    account.checkpoints = _checkpoints(run, account)
    account.pictures = _pictures(run)
    account.evaluation = figures_in(run.path / written.NAME, account.faults)
    account.followed = followed_in(run.followed, account.faults)
    account.messages = _text(run.messages).splitlines()
    account.shards = {
        str(name): str(about) for name, about in _json(run.data, account.faults).items()
    }
    account.environments = [
        (entry["images"], environment.in_words(entry))
        for entry in environment.kept(run.environment)[-MOST_ENVIRONMENTS:]
    ]
    account.complete = bool(_json(run.result, account.faults))
    account.failure = "" if account.complete else (run.failure() or (0, ""))[1]
    last = [int(point["images"]) for point in account.points[-1:]]
    account.images = max([*last, *(kept.images for kept in account.checkpoints), 0])
    return account


def _toml(path: Path, account: Account) -> dict[str, Any]:
    if not path.exists():
        account.faults.append(f"{path.name} is missing: the settings are not known")
        return {}
    try:
        return tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError as error:
        account.faults.append(f"{path.name} cannot be read ({error})")
        return {}


def _json(path: Path, faults: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        loaded = json.loads(_text(path))
        return loaded if isinstance(loaded, dict) else {}
    except (ValueError, RecursionError):
        faults.append(f"{path.name} is damaged")
        return {}


def _text(path: Path) -> str:
    """A file as text, at most so much of it; "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(LONGEST_FILE).decode("utf-8", "replace")
    except OSError:
        return ""


def _points(run: RunFolder, account: Account) -> list[dict[str, float]]:
    points, torn = [], 0
    for line in _text(run.curves).splitlines():
        try:
            point = json.loads(line)
        except (ValueError, RecursionError):
            point = None
        if isinstance(point, dict) and _is_number(point.get("images")):
            points.append(point)
        else:
            torn += 1
    if torn:
        account.faults.append(f"{run.curves.name}: {torn} lines are no points")
    if not points:
        account.faults.append("there are no curves")
    return points


def _checkpoints(run: RunFolder, account: Account) -> list[Kept]:
    kept = []
    for path in sorted(run.checkpoints.glob("[0-9]*")) if run.checkpoints.is_dir() else []:
        state = _json(path / "state.json", account.faults)
        figures = state.get("figures")
        if not path.name.isdecimal() or not isinstance(figures, dict):
            account.faults.append(f"checkpoint {path.name} is damaged")
            continue
        numbers = {str(name): float(value) for name, value in figures.items() if _is_number(value)}
        held_out = state.get("held_out")
        kept.append(
            Kept(
                int(path.name),
                numbers,
                str(state.get("data", "")),
                held_out if isinstance(held_out, int) else 0,
            )
        )
    if not kept:
        account.faults.append("there is no checkpoint")
    return kept


def _pictures(run: RunFolder) -> dict[str, list[tuple[int, Path]]]:
    """The pictures by kind, in the order of images: `samples-000000001234.png`."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(run.pictures.glob("*-*.png")) if run.pictures.is_dir() else []:
        kind, _, images = path.stem.rpartition("-")
        if images.isdecimal():
            found.setdefault(kind, []).append((int(images), path))
    return found


def figures_in(path: Path, faults: list[str]) -> dict[str, Figure]:
    """The figures of an `evaluation.json`; what is none goes to `faults`."""
    figures = _json(path, faults).get("figures", {})
    found = {}
    for name, entry in figures.items() if isinstance(figures, dict) else ():
        if not isinstance(entry, dict) or not _is_number(entry.get("value")):
            faults.append(f"{path.name}: {name} is no figure")
            continue
        deviation: Any = entry.get("sd")
        found[str(name)] = Figure(
            float(entry["value"]),
            float(deviation) if _is_number(deviation) else None,
            _table(entry.get("floor")),
            _table(entry.get("protocol")),
        )
    return found


def followed_in(folder: Path, faults: list[str]) -> dict[int, dict[str, Figure]]:
    """The figures of checkpoints that `udl evaluate --follow` measured, by images; what is none
    goes to `faults`.
    """
    found = {
        int(path.stem): figures_in(path, faults)
        for path in sorted(folder.glob("[0-9]*.json"))
        if path.stem.isdecimal()
    }
    return {images: figures for images, figures in found.items() if figures}


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
