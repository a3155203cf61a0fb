"""An experiment, what we want: the settings of every owner joined under one dotted name each.

Defaults < the method's defaults < a TOML file < flags. Everything is strict: an unknown key names
the nearest one, a key in the wrong table is refused, a wrong type is refused. Knows the owners'
settings; knows no torch, no Ray and no method by name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udl_dist import methods
from udl_dist.core import config_schema
from udl_dist.core.files import read_toml
from udl_dist.data.settings import DataSettings
from udl_dist.errors import UsageError
from udl_dist.evaluation.settings import EvaluateSettings
from udl_dist.runs.settings import RunSettings, TrackSettings
from udl_dist.training.settings import TrainSettings

if TYPE_CHECKING:
    from udl_dist.methods.method import Method

# Removed settings. Run folders of earlier releases spell their defaults, so a value that is off is
# accepted.
REMOVED = {
    "data.sequential": "shards at http:// and https:// are indexed like any others: leave it out"
}
SECTIONS: dict[str, type] = {
    "data": DataSettings,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "run": RunSettings,
    "track": TrackSettings,
}
# What may differ between a run and its resumption, because the weights after n images do not depend
# on it.
FREE_ON_RESUME = (
    "run.",
    "track.",
    "evaluate.",
    "data.readers",
    "data.cache",
    "train.total_images",
    "train.epochs",
    "train.report_images",
)
BOUND = ("run.determinism",)
LENGTHS = ("train.total_images", "train.epochs")  # of a run, of which one holds


@dataclass(frozen=True)
class Experiment:
    """One experiment. `method` is the settings dataclass of the method called `method_name`."""

    method_name: str
    method: Any
    data: DataSettings
    train: TrainSettings
    evaluate: EvaluateSettings
    run: RunSettings
    track: TrackSettings

    def to_dict(self) -> dict[str, Any]:
        """Every setting, defaults spelled out; `from_dict` reads it back."""
        method = {"name": self.method_name, **config_schema.to_dict(self.method)}
        return {
            "method": method,
            **{name: config_schema.to_dict(getattr(self, name)) for name in SECTIONS},
        }

    @property
    def best_metric(self) -> str:
        """The held-out metric that chooses the best checkpoint; "" if the method has none."""
        own = methods.find(self.method_name).best
        return self.run.best or (f"val/{own}" if own else "")

    def sign_of(self, metric: str) -> int:
        """-1 where more of a held-out metric is better, else 1."""
        return methods.find(self.method_name).sign(metric)

    def to_toml(self) -> str:
        """The same as a TOML file that can be fed back."""
        import tomli_w  # a model is loaded with torch, safetensors and numpy alone

        return tomli_w.dumps(self.to_dict())

    def replace(self, **changes: Any) -> Experiment:
        """A copy with other sections."""
        return dataclasses.replace(self, **changes)


def load(path: Path | None, flags: Mapping[str, str]) -> Experiment:
    """Read a job file, or that of a run folder, and apply flags; without one, only the flags."""
    path = job_file(path, "experiment.toml") if path else None
    values = read_toml(path) if path else {}
    if "search" in values:
        raise UsageError(f"{path} has a [search] table, it is for udl search: udl search {path}")
    return join(values, flags, path)


def join(values: dict[str, Any], flags: Mapping[str, str], path: Path | None) -> Experiment:
    """The same of values that were read from `path`."""
    _refuse_tables(values)
    flat = config_schema.flatten(values)
    name = flags.get("method.name", flat.get("method.name"))
    known = kinds(name)  # type: ignore[arg-type]  # refuses what is no name
    if not flat.get("run.folder"):
        source = str(flags.get("data.source", flat.get("data.source", DataSettings.source)))
        flat["run.folder"] = f"runs/{path.stem if path else f'{name}_{_name_of(source)}'}"
    for dotted, text in flags.items():
        if dotted in REMOVED:
            raise UsageError(f"{dotted} was removed: {REMOVED[dotted]}")
        if dotted not in known:
            raise UsageError(f"unknown setting {dotted}: {nearest(dotted, list(known))}")
        flat[dotted] = config_schema.from_text(dotted, known[dotted], text)
    # a flag counts, not the other measure that the file has
    for one, other in (LENGTHS, LENGTHS[::-1]):
        if one in flags and other not in flags:
            flat.pop(other, None)
    return from_dict(config_schema.nest(flat))


def job_file(path: Path, name: str) -> Path:
    """The file itself, or of a run or search folder its file `name` of settings."""
    if not path.is_dir():
        return path
    if not (path / name).is_file():
        raise UsageError(
            f"{path} is a folder without {name}, not a job file: images are given as --data.source"
            f" {path}"
        )
    return path / name


def _name_of(source: str) -> str:
    """A word for a source of images: the last part of its name."""
    last = source.partition("?")[0].rstrip("/").rpartition("/")[2].partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", last).strip("-") or "images"


def from_dict(values: Mapping[str, Any]) -> Experiment:
    """Build and check an experiment from nested plain values; raise UsageError with one line."""
    values = _without_removed(values)
    _refuse_tables(values)
    method_table = dict(values.get("method", {}))
    name = method_table.pop("name", None)
    kind = _method(name)
    _refuse_misplaced(values, name)
    # Settings of training that suit the method stand below those that are given.
    given = config_schema.flatten({section: values.get(section, {}) for section in SECTIONS})
    tables = config_schema.nest({**kind.defaults, **given})
    sections: dict[str, Any] = {
        section: config_schema.from_dict(owner, tables.get(section, {}), f"{section}.")
        for section, owner in SECTIONS.items()
    }
    return Experiment(
        name, config_schema.from_dict(kind.Settings, method_table, "method."), **sections
    )


def _without_removed(values: Mapping[str, Any]) -> dict[str, Any]:
    flat = config_schema.flatten(values)
    for dotted, advice in REMOVED.items():
        if flat.pop(dotted, None):
            raise UsageError(f"{dotted} was removed: {advice}")
    return config_schema.nest(flat)


def differences(old: Experiment, new: Experiment) -> list[str]:
    """What a resumed run must not change and does, as `name was old, now new`."""
    before, after = config_schema.flatten(old.to_dict()), config_schema.flatten(new.to_dict())
    names = sorted(set(before) | set(after))
    return [
        f"{name} was {before.get(name)!r}, now {after.get(name)!r}"
        for name in names
        if before.get(name) != after.get(name)
        and (name in BOUND or not name.startswith(FREE_ON_RESUME))
    ]


def describe(method_name: str) -> Iterator[tuple[str, str, Any, str]]:
    """Every setting of an experiment with that method: (dotted name, type, default, meaning)."""
    yield "method.name", " or ".join(methods.names()), method_name, "what is learned"
    kind = _method(method_name)
    yield from config_schema.describe(kind.Settings, "method.")
    for section, owner in SECTIONS.items():
        for name, text, default, meaning in config_schema.describe(owner, f"{section}."):
            yield name, text, kind.defaults.get(name, default), meaning


def _method(name: Any) -> type[Method]:
    if not isinstance(name, str):
        asked = "is missing" if name is None else f"must be text, not {name!r}"
        raise UsageError(f"method.name {asked}: there are {', '.join(methods.names())}")
    return methods.find(name)


def kinds(method_name: str) -> dict[str, Any]:
    """The type of every setting of an experiment with that method, by its dotted name."""
    found: dict[str, Any] = {"method.name": str}
    for section, owner in {"method": _method(method_name).Settings, **SECTIONS}.items():
        found |= config_schema.kinds(owner, f"{section}.")
    return found


def nearest(dotted: str, known: Sequence[str]) -> str:
    """The nearest dotted names: by the last part, then by its initials (`lr`), then by spelling."""
    asked = dotted.rsplit(".", 1)[-1]
    last = {name: name.rsplit(".", 1)[-1] for name in known}
    initials = {name: "".join(word[:1] for word in own.split("_")) for name, own in last.items()}
    for spelled in (last, initials):
        if alike := [name for name, own in spelled.items() if own == asked]:
            return f"did you mean {alike[0]}?"
    return config_schema.nearest(dotted, list(known))


def _refuse_tables(values: Mapping[str, Any]) -> None:
    """Only the owners' tables, and each of them a table."""
    tables = ["method", *SECTIONS]
    for table, content in values.items():
        if table not in tables:
            raise UsageError(f"unknown table [{table}]: {config_schema.nearest(table, tables)}")
        if not isinstance(content, Mapping):
            raise UsageError(f"{table} is a table of settings, not {content!r}")


def _refuse_misplaced(values: Mapping[str, Any], method_name: str) -> None:
    """A key in the wrong table gets the name of the right one (never ignored)."""
    known = kinds(method_name)
    for dotted in config_schema.flatten(values):
        if dotted not in known and not any(name.startswith(dotted + ".") for name in known):
            raise UsageError(f"unknown setting {dotted}: {nearest(dotted, list(known))}")
