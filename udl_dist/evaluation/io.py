"""Metrics of `evaluation.json`: reading, comparing by protocol, printing; needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udl_dist.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

NAME = "evaluation.json"
LONGEST_FILE = 2**26  # bytes read of a file, whatever its size
MOST_LISTED = 20  # classes in a terminal
EXTRA = "pip install 'udl-dist[evaluate]'"


@dataclass(frozen=True)
class ClassMetric:
    """A metric of the `images` of one class alone."""

    value: float
    images: int


@dataclass(frozen=True)
class Metric:
    """A value, its std over seeds, floors and ceilings to compare with, and how it was measured.

    `classes` has its values within each class, by name, where images are labelled.
    """

    value: float
    sd: float | None = None
    floor: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[str, ClassMetric] = field(default_factory=dict)

    def number(self, digits: int = 6) -> str:
        """The value, ± its std where it has one."""
        spread = f" ± {self.sd:.{digits - 3}g}" if self.sd is not None else ""
        return f"{self.value:.{digits}g}{spread}"

    def as_dict(self) -> dict[str, Any]:
        """Its entry of an `evaluation.json`; `classes` is absent where there are none."""
        found = {**vars(self), "floor": self.floor or None}
        classes = {name: vars(one) for name, one in found.pop("classes").items()}
        return found | ({"classes": classes} if classes else {})


def metrics_in(path: Path, faults: list[str]) -> dict[str, Metric]:
    """The metrics of an `evaluation.json`; `faults` gets a line for each invalid entry."""
    # The key is of the first release; files in run folders and programs that read them depend on
    # it.
    entries, found = read_json(path, faults).get("figures"), {}
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        if not isinstance(entry, dict) or not is_number(entry.get("value")):
            faults.append(f"{path.name}: {name} is not a valid metric")
            continue
        sd: Any = entry.get("sd")
        floor, protocol = (entry.get(key) for key in ("floor", "protocol"))
        found[str(name)] = Metric(
            float(entry["value"]),
            float(sd) if is_number(sd) else None,
            floor if isinstance(floor, dict) else {},
            protocol if isinstance(protocol, dict) else {},
            _classes(entry.get("classes")),
        )
    return found


def _classes(entries: Any) -> dict[str, ClassMetric]:
    """The valid entries of a metric by class."""
    return {
        str(name): ClassMetric(float(one["value"]), int(one["images"]))
        for name, one in (entries.items() if isinstance(entries, dict) else ())
        if isinstance(one, dict) and is_number(one.get("value")) and is_number(one.get("images"))
    }


def class_rows(metrics: Mapping[str, Metric]) -> tuple[list[str], list[list[str]]]:
    """A table of metrics by class: its head, and for each class its images and its values."""
    by_class = {name: metric.classes for name, metric in metrics.items() if metric.classes}
    classes: dict[str, int] = {}  # the most images: a metric may lack a class
    for values in by_class.values():
        for name, one in values.items():
            classes[name] = max(one.images, classes.get(name, 0))
    rows = [
        [name, f"{images:,}"]
        + [f"{values[name].value:.5g}" if name in values else "–" for values in by_class.values()]
        for name, images in classes.items()
    ]
    return ["class", "images", *by_class], rows


def followed_in(folder: Path, faults: list[str]) -> dict[int, dict[str, Metric]]:
    """The metrics of each checkpoint that `udl evaluate --follow` measured, by images seen."""
    files = [path for path in sorted(folder.glob("[0-9]*.json")) if path.stem.isdecimal()]
    found = {int(path.stem): metrics_in(path, faults) for path in files}
    return {images: metrics for images, metrics in found.items() if metrics}


def of_weights(path: Path, weights: str) -> dict[str, Any]:
    """The entries of a file that were measured with these weights; empty if it is unreadable."""
    try:
        # So that two commands with different --families add up to one file.
        entries = read_json(path, [])["figures"]
        return {name: one for name, one in entries.items() if one["protocol"]["weights"] == weights}
    except (TypeError, KeyError, AttributeError):
        return {}


def table(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each metric: its value, its std and its floors; then a table of few classes."""
    width = max(len(name) for name in entries)
    lines, by_class = [], {}
    for name, entry in entries.items():
        floors = ", ".join(f"{what} {value:.5g}" for what, value in (entry["floor"] or {}).items())
        metric = Metric(entry["value"], entry["sd"], classes=_classes(entry.get("classes")))
        lines.append(f"{name:<{width}}  {metric.number(5):<18}  {floors}".rstrip())
        by_class[name] = metric
    head, rows = class_rows(by_class)
    if 0 < len(rows) <= MOST_LISTED:
        lines += aligned([head, *([clean(row[0]), *row[1:]] for row in rows)], str.ljust)
    return lines


def aligned(
    rows: Sequence[Sequence[str]], others: Callable[[str, int], str] = str.rjust
) -> list[str]:
    """Rows of cells as lines: the first column to the left, the `others` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(others, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def shared_protocols(
    protocols: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries that all protocols share, and those that two or more, but not all, share."""
    every = list(protocols)
    of_all, of_some = dict[str, Any](), dict[str, Any]()
    for name in dict.fromkeys(name for protocol in every for name in protocol):
        first, *others = [protocol[name] for protocol in every if name in protocol]
        # What a single metric has is not shared, unless it is the only one.
        if others == [first] * len(others) and (others or len(every) == 1):
            shared = of_all if len(others) + 1 == len(every) else of_some
            shared[name] = first
    return of_all, of_some


def metric_rows(
    metrics: Mapping[str, Metric], escape: Callable[[str], str] = str
) -> list[tuple[str, str, str, str]]:
    """Name, value, floors and further protocol of each metric, as text.

    Entries that all protocols share are left out; of those that some share, the value is.
    """
    of_all, of_some = shared_protocols(metric.protocol for metric in metrics.values())
    rows = []
    for name, metric in metrics.items():
        own = {key: value for key, value in metric.protocol.items() if key not in of_all}
        words = [escape(key) if key in of_some else pairs({key: own[key]}, escape) for key in own]
        floors = pairs(metric.floor, escape)
        rows.append((escape(name), metric.number(), floors, ", ".join(words)))
    return rows


def pairs(values: Mapping[str, Any], escape: Callable[[str], str] = str) -> str:
    """Names and values in a line."""
    return ", ".join(f"{escape(name)} {escape(in_words(one))}" for name, one in values.items())


def in_words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "empty" if value == "" else str(value)


def clean(text: str, breaks: str = "\n") -> str:
    """Text without control characters and marks that change the direction of writing."""
    return "".join(letter if letter.isprintable() or letter in breaks else "�" for letter in text)


def read_text(path: Path) -> str:
    """A file as text, its first 64 MiB; "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            # "replace": a log that a crash cut within a character is still worth showing.
            return file.read(LONGEST_FILE).decode("utf-8", "replace")
    except OSError:
        return ""


def read_json(path: Path, faults: list[str]) -> dict[str, Any]:
    """A JSON object; {} for an absent file, or a damaged one, which `faults` then names."""
    if not path.exists():
        return {}
    try:
        loaded = json.loads(read_text(path))
        return loaded if isinstance(loaded, dict) else {}
    # RecursionError: brackets nested by the thousand, which only a hostile file has.
    except (ValueError, RecursionError):
        faults.append(f"{path.name} is damaged")
        return {}


def read_tensors(path: Path, what: str, cure: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and facts of a safetensors file; raise DataError if it is not a valid `what`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not iterable)
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        why = " ".join(str(error).split())
        raise DataError(f"{path} is not a valid {what} ({why}): {cure}") from None


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a finite number."""
    # bool is an int in Python, and its JSON reader lets NaN and Infinity pass.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
