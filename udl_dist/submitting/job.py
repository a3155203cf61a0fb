"""A job made ready to travel: every path absolute, its name derived from what it is. Knows no cluster."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from udl_dist import experiment as experiments
from udl_dist.errors import UsageError
from udl_dist.experiment import Experiment
from udl_dist.search import settings as searches
from udl_dist.settings import as_path
from udl_dist.storage.places import scheme_of

JOB_BYTES = 2**20  # a job file is a page of text
THERE = "auto"  # what a driver calls the cluster it runs on


@dataclass(frozen=True)
class Job:
    """What is submitted: the verb that runs it, the job file as it travels, and its submission id."""

    verb: str
    experiment: Experiment
    toml: str
    name: str

    @property
    def folder(self) -> str:
        return self.experiment.run.folder


def load(path: Path, flags: Mapping[str, str]) -> Job:
    """Read a job file, of a run or of a search, as it is to be run on the cluster."""
    if path.is_file() and path.stat().st_size > JOB_BYTES:
        raise UsageError(f"{path} is no job file: it has {path.stat().st_size:,} bytes")
    if "search" not in experiments.read(path):
        wanted = _travelling(experiments.load(path, flags))
        return _job("train", wanted, wanted.to_toml())
    found = searches.load(path, flags)
    found = replace(found, base=_travelling(found.base))
    return _job("search", found.base, found.to_toml())


def _job(verb: str, experiment: Experiment, toml: str) -> Job:
    """The name is the same for the same job and run folder, so that it can be submitted again, stopped and watched."""
    last = experiment.run.folder.partition("?")[0].rstrip("/").rpartition("/")[2]
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", last)[:40].strip("-")
    return Job(verb, experiment, toml, f"udl-{plain}-{hashlib.sha256(f'{verb} {toml}'.encode()).hexdigest()[:12]}")


def _travelling(experiment: Experiment) -> Experiment:
    """The same experiment for whoever runs it elsewhere, in another working directory."""
    if experiment.run.address:
        raise UsageError("run.address is for udl train: give udl submit --address, the cluster's dashboard")
    data, run, track = experiment.data, experiment.run, experiment.track
    data = replace(data, source=_source(data.source), held_out=_source(data.held_out), keys=_absolute(data.keys),
                   more_sources=tuple(_source(each) for each in data.more_sources), cache=_absolute(data.cache)
                   )  # fmt: skip
    return experiment.replace(
        data=data, track=replace(track, key_file=_absolute(track.key_file)),
        run=replace(run, folder=_absolute(run.folder), address=THERE),
    )  # fmt: skip


def _source(source: str) -> str:
    """A name of embedded images, or a path; `~` is the home of whoever submits."""
    return source if source == "digits" else _absolute(source)


def _absolute(path: str) -> str:
    return str(as_path(path)) if path and not scheme_of(path) else path
