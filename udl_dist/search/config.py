"""The configuration of a search: an experiment file with a [search] table."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tomli_w

from udl_dist import experiment as experiments
from udl_dist.core import config_schema as settings
from udl_dist.core.config_schema import setting
from udl_dist.core.files import read_toml
from udl_dist.errors import UsageError
from udl_dist.experiment import Experiment
from udl_dist.search.axes import Axis, parse
from udl_dist.storage.uris import is_remote

# What may differ when a search is resumed: no result depends on it.
# A prefix ending in a dot frees a whole section. The seed, the axes, the budget and all else that
# training depends on are not free: results of two such searches do not belong in one log.
FREE = (
    *("search.trials", "search.brackets", "search.seconds", "search.parallel", "search.gpu_share"),
    *(
        "search.keep",
        "search.finalists",
        "search.final_seeds",
        "search.evaluate",
        "search.export",
        "search.plots",
    ),
    *("run.", "track.", "evaluate.", "data.readers", "data.cache"),
)


@dataclass(frozen=True)
class SearchSettings:
    metric: tuple[str, ...] = setting(
        (),
        "held-out metric, such as val/negative_elbo; several (also a setting by its name): the"
        " Pareto front; empty: the method's own",
    )
    trials: int = setting(0, "trials in all; 0 with a grid: all combinations", low=0)
    budget_images: int = setting(
        0, "images of a trial that is not stopped; 0: those of a full run", low=0
    )
    seconds: float = setting(
        0.0, "seconds after which the search stops, to be resumed later; 0: no limit", low=0
    )
    scheduler: Literal["halving", "asha", "median", "none"] = setting(
        "halving", "the rule that stops trials early; asha for more than about 100 trials"
    )
    brackets: tuple[int, ...] = setting(
        (),
        "halving: trials that are compared with each other; empty: all of them, and those that are"
        " asked for later among themselves",
    )
    least_images: int = setting(
        0,
        "images before a trial may be stopped; 0: by halving an eighth of the budget, by asha"
        " a 64th, by median a tenth",
        low=0,
    )
    reduction: int = setting(
        4, "halving and asha: one of this many trials goes on at each rung", low=2
    )
    sampler: Literal["auto", "optuna", "sobol", "random", "grid"] = setting(
        "auto", "how the settings of a trial are chosen; auto: by halving optuna, else sobol"
    )
    ahead: int = setting(
        4, "optuna: a trial is drawn without the results of this many trials before it", low=1
    )
    seed: int = setting(0, "seed of the sampler", low=0, high=2**63 - 1)
    seeds: int = setting(
        1, "trials of each setting, with different seeds; the best mean wins", low=1
    )
    finalists: int = setting(
        2, "best settings that are trained on the full budget; the best mean of them wins", low=1
    )
    final_seeds: int = setting(
        2, "runs of each finalist on the full budget, with different seeds; 0: none", low=0
    )
    evaluate: bool = setting(True, "measure the winner's runs at the end, as udl evaluate does")
    export: bool = setting(
        True, "export the best of the winner's runs into model/, as udl export does"
    )
    parallel: int = setting(0, "trials at the same time; 0: as many as fit", low=0)
    gpu_share: float = setting(
        1.0, "part of a GPU that a trial of one worker takes", above=0, high=1
    )
    keep: int = setting(1, "best trials whose checkpoints are not deleted", low=0)
    plots: bool = setting(True, "draw the plots at the end")


SETTINGS = settings.kinds(SearchSettings)


@dataclass(frozen=True)
class Search:
    """A search: the experiment that every trial varies, the settings of the search, its axes."""

    base: Experiment
    settings: SearchSettings
    axes: tuple[Axis, ...]
    tables: Mapping[str, Any]  # of the axes, as they were written

    @property
    # Absolute: Ray's actors work in another folder.
    def folder(self) -> Path:
        return Path(self.base.run.folder).absolute()

    @property
    def batches(self) -> list[int]:
        """The batch sizes that trials may have; of a range its ends."""
        # Rungs are rounded to whole steps, so they depend on these.
        own = [axis for axis in self.axes if axis.name == "train.batch_size"]
        return [self.base.train.batch_size, *(value for axis in own for value in axis.ends())]

    @property
    def sign(self) -> int:
        """-1 where more of the metric is better, else 1."""
        return self.base.sign_of(self.settings.metric[0])

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.base.to_dict(),
            "search": {**settings.to_dict(self.settings), **self.tables},
        }

    def to_toml(self) -> str:
        """The whole search as a job file that can be fed back."""
        return tomli_w.dumps(self.to_dict())

    def replace(self, **changes: Any) -> Search:
        """A copy with other settings of the search."""
        return replace(self, settings=replace(self.settings, **changes))


def load(path: Path, flags: Mapping[str, str]) -> Search:
    """Read a job file and apply flags; raise UsageError for an invalid one."""
    path = experiments.job_file(path, "search.toml")
    values = read_toml(path)
    table = values.pop("search", None)
    if not isinstance(table, Mapping):
        raise UsageError(f"{path} has no [search] table, it is for udl train: udl train {path}")
    of_base = {name: text for name, text in flags.items() if not name.startswith("search.")}
    # The base is checked as a run of its own, so its errors read as those of `udl train`.
    base = experiments.join(values, of_base, path)
    plain, tables = _split(table)
    # --search.seed is a setting, --search.train.learning_rate an axis.
    for flag in flags.keys() - of_base.keys():
        name, text = flag.removeprefix("search."), flags[flag]
        if "." in name:
            tables[name] = _from_text(text)
        else:
            known = SETTINGS.get(name)
            plain[name] = settings.from_text(name, known, text) if known else text
    # An unknown name goes on as text: `from_dict` refuses it with the nearest known one.
    return build(base, plain, tables)


def build(base: Experiment, plain: Mapping[str, Any], tables: Mapping[str, Any]) -> Search:
    """Check and join the parts of a search."""
    from udl_dist import methods

    # Decisions and stop requests are files that actors poll many times a second.
    if is_remote(base.run.folder):
        raise UsageError(
            f"a search needs a folder on a disk, not {base.run.folder}: give --run.folder a path "
            "that all nodes see; data may lie in object storage"
        )
    plain = _without_removed(plain)
    if isinstance(metric := plain.get("metric"), str):
        # A flag or a single metric is one string; a list in the file is a list already.
        plain["metric"] = metric.split(",")
    found = settings.from_dict(SearchSettings, plain, "search.")
    # The metric by which a run chooses its best checkpoint; a method of your own may have none.
    own = methods.find(base.method_name).best
    if not any(found.metric):
        if not own:
            raise UsageError(
                f"search.metric is missing: method {base.method_name} has no metric of its own"
            )
        found = replace(found, metric=(f"val/{own}",))
    return Search(base, found, parse(tables, base), dict(tables))


def _without_removed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse removed settings; drop their defaults, which older search.toml files have."""
    if plain.get("scheduler") == "pbt":
        raise UsageError(
            "search.scheduler = pbt (population-based training) was removed: use asha or median, "
            "in a new --run.folder"
        )
    if plain.get("perturb_images", 0) != 0:
        raise UsageError(
            "search.perturb_images was removed with population-based training: leave it out"
        )
    if plain.get("mode", "min") != "min":
        raise UsageError(
            "search.mode was removed: a method says which of its metrics are better when they are"
            " higher: leave it out"
        )
    # The values that every search.toml of former releases has.
    return {name: value for name, value in plain.items() if name not in ("perturb_images", "mode")}


def differences(old: Search, new: Search) -> list[str]:
    """Where two searches cannot share one folder, as `name was old, now new`."""
    before, after = (settings.flatten(each.to_dict()) for each in (old, new))
    return [
        f"{name} was {before.get(name)!r}, now {after.get(name)!r}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name) and not name.startswith(FREE)
    ]


def _split(table: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a [search] table, and its axes: the names with dots, quoted or as tables."""
    plain: dict[str, Any] = {}
    axes: dict[str, Any] = {}
    for name, value in table.items():
        # "train.learning_rate" = {...} and [search.train] learning_rate = {...} mean the same axis.
        if "." in name or (isinstance(value, Mapping) and name not in SETTINGS):
            axes |= _axis_tables(name, value)
        else:
            plain[name] = value
    return plain, axes


def _axis_tables(name: str, value: Any) -> dict[str, Any]:
    """A table of tables, such as [search.method], is a prefix; any other value is for the axis."""
    tables = isinstance(value, Mapping) and all(isinstance(v, Mapping) for v in value.values())
    if not tables or not value:
        return {name: value}
    found: dict[str, Any] = {}
    for key, below in value.items():
        found |= _axis_tables(f"{name}.{key}", below)
    return found


def _from_text(text: str) -> Any:
    try:
        # On the command line an axis is written as in the file: {log = [1e-4, 1e-2]}.
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # refused by name
