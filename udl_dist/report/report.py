"""`udl report`: one page about a run, complete in itself; of a broken run it tells what is left."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udl_dist import account, environment, experiment
from udl_dist.account import Account, Figure
from udl_dist.errors import DataError, UdlError, UsageError
from udl_dist.report import curves
from udl_dist.report.page import clean, page
from udl_dist.report.pictures import films
from udl_dist.shards.index import Index
from udl_dist.storage.places import is_remote, split

NAME = "report.html"
MOST_BYTES = 5_000_000
MOST_SHARDS = 100  # that are listed
MOST_PANELS = 16
MESSAGES = 200  # lines
NOT_DRAWN = ("images", "train/learning_rate")
MACHINE = ("perf/images_per_second", "perf/data_wait_share", "perf/memory_bytes")


@dataclass(frozen=True)
class Reported:
    """Where the page is, and what is wrong with the run it is of."""

    path: str
    total_bytes: int
    faults: list[str]

    def lines(self) -> list[str]:
        return [f"{self.path}: {self.total_bytes / 1e6:.2f} MB, open it in any browser", *map(clean, self.faults)]

    def as_dict(self) -> dict[str, Any]:
        return vars(self)


def report(folder: str, out: Path | None = None) -> Reported:
    """Write the page, into the run folder unless told where; raise UsageError for a folder that is no run."""
    about = account.read(folder)
    shown, faults = films(about.pictures)
    about.faults += faults
    text = page(_values(about, shown))
    path = out or about.folder / NAME
    if len(text.encode()) > MOST_BYTES:
        text = page(_values(about, []))
        about.faults.append("the pictures were left out: the page would have been too large")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r} ({error.strerror}): name another place with --out") from None
    return Reported(str(path), len(text.encode()), about.faults)


def _values(about: Account, shown: list[dict[str, Any]]) -> dict[str, Any]:
    """What the template asks for."""
    held_out, shared = about.held_out(), _shared(about.evaluation)
    sections = [
        ("figures", "Figures"),
        ("curves", "Curves"),
        ("pictures", "Pictures"),
        ("data", "Data"),
        ("settings", "Settings"),
        ("environment", "Environment"),
        ("reproduce", "Reproduce"),
        *[("messages", "Messages")] * bool(about.messages),
    ]
    return {
        "title": about.folder.name,
        "facts": _facts(about),
        "sections": sections,
        "faults": about.faults,
        "alarms": [line for line in about.messages if "ALARM" in line][:20],
        "held_out": [(name, _number(last), _number(best)) for name, (last, best, _) in held_out.items()],
        "best_by": about.best_by if about.best_by in held_out else "",
        "held_out_images": f"{about.held_out_images:,} " if about.held_out_images else "",
        "best_images": f"{next((images for _, _, images in held_out.values()), 0):,}",
        "protocol": _joined({name: value for name, value in about.protocol().items() if value not in (None, "")}),
        "evaluation": [_evaluated(name, figure, shared) for name, figure in about.evaluation.items()],
        "shared": _joined(shared),
        "panels": _panels(about),
        "pictures": shown,
        "data": _data(about),
        "shards": list(about.shards.items())[:MOST_SHARDS],
        "most_shards": MOST_SHARDS,
        "settings": _settings(about),
        "commands": _commands(about),
        "environments": [(f"{images:,}", words) for images, words in about.environments],
        "made_with": environment.in_words(environment.releases()),
        "messages": about.messages[-MESSAGES:],
    }


def _facts(about: Account) -> list[str]:
    state = "complete" if about.complete else "not complete"
    kept = f"{len(about.checkpoints)} checkpoints kept"
    return [f"method {about.method}", f"{about.images:,} images seen", state, kept]


def _panels(about: Account) -> list[dict[str, str]]:
    """A panel for each term, training and held out together, then the machine's."""
    names = sorted({name for point in about.points for name in point} - set(NOT_DRAWN))
    terms = sorted({name.split("/", 1)[-1] for name in names if name.startswith(("val/", "train/"))},
                   key=lambda term: (f"val/{term}" not in names, term))  # fmt: skip
    wanted = {term: {f"{part}/{term}": about.curve(f"{part}/{term}") for part in ("train", "val")} for term in terms}
    wanted |= {name: {name: about.curve(name)} for name in MACHINE if name in names}
    panels: list[dict[str, str]] = []
    for number, (title, drawn) in enumerate(wanted.items()):
        kept = {clean(name): curve for name, curve in drawn.items() if curve[0]}
        if kept and len(panels) < MOST_PANELS:
            said = "; ".join(f"{name} from {values[0]:.4g} to {values[-1]:.4g}, least {min(values):.4g}"
                             for name, (_, values) in kept.items())  # fmt: skip
            panels.append({"name": title, "svg": curves.as_svg(kept, number), "said": said,
                           "alt": f"Curve of {title} over images seen: {said}"})  # fmt: skip
    return panels


def _evaluated(name: str, figure: Figure, shared: Mapping[str, Any]) -> tuple[str, str, str, str]:
    spread = f" ± {figure.deviation:.3g}" if figure.deviation is not None else ""
    own = {key: value for key, value in figure.protocol.items() if key not in shared}
    return name, f"{figure.value:.6g}{spread}", _joined(figure.floor), _joined(own)


def _shared(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """The part of the protocols that is the same for every figure: it is told once."""
    first, *others = [figure.protocol for figure in figures.values()] or [{}]
    return {name: value for name, value in first.items()
            if all(name in other and other[name] == value for other in others)}  # fmt: skip


def _data(about: Account) -> list[tuple[str, str]]:
    wanted = {"source": "data.source", "further sources": "data.more_sources", "held out": "data.held_out",
              "held-out fraction": "data.held_out_fraction", "size": "data.size", "channels": "data.channels",
              "fit": "data.fit"}  # fmt: skip
    rows = [
        (name, str(value)) for name, key in wanted.items() if (value := about.settings.get(key)) not in (None, "", [])
    ]
    rows.append(("fingerprint", about.data or "not known"))
    if license := _license(about):
        rows.append(("licence of the images", license))
    return rows


def _license(about: Account) -> str:
    """What the index beside the first shard says; nothing is fetched from elsewhere for it."""
    folder = split(next(iter(about.shards), ""))[0]
    if not folder or is_remote(folder):
        return ""
    try:
        return Index.open(folder).about.license[:1000]
    except DataError:
        return ""


def _settings(about: Account) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """The settings by table, with whether each was changed."""
    try:
        defaults = {name: default for name, _, default, _ in experiment.describe(about.method)}
    except UdlError:
        defaults = {}
    tables: dict[str, list[tuple[str, str, bool]]] = {}
    for name, value in about.settings.items():
        default = defaults.get(name, value)
        plain = list(default) if isinstance(default, tuple) else default
        tables.setdefault(name.split(".")[0], []).append((name, _value(value), plain != value))
    return list(tables.items())


def _commands(about: Account) -> str:
    if not about.settings:
        return "the settings are not known"
    job = shlex.quote(clean(str(about.folder / "experiment.toml")))
    run = shlex.quote(clean(str(about.folder)))
    return "\n".join([
        f"udl train {job} --run.folder runs/again    # the same run, from its start",
        f"udl export {run} model    # the best checkpoint as safetensors, with a card",
        f"udl report {run}    # this page",
    ])  # fmt: skip


def _joined(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "empty" if value == "" else str(value)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.6g}"
