"""A job to submit, every path absolute, its name a hash of its content; and what is sent of it.

Nothing of the disk is sent but this package and the job.
"""

from __future__ import annotations

import hashlib
import io
import re
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from udl_dist import experiment as experiments
from udl_dist.core.config_schema import as_path, from_flags, to_dict
from udl_dist.core.files import read_toml
from udl_dist.errors import UsageError
from udl_dist.evaluation.settings import OWN, MetricSettings
from udl_dist.experiment import Experiment
from udl_dist.search import config as searches
from udl_dist.storage.uris import scheme_of

# A larger file is an image or an archive, named by mistake: it is not read.
JOB_BYTES = 2**20  # a job file is a page of text
PACKAGE = Path(__file__).parent.parent
# Code, the mark for type checkers, and the parts of report pages and model cards.
SUFFIXES = (".py", ".typed", ".css", ".js", ".jinja")
# The package itself has about 0.9 MB.
LIMIT_BYTES = 16 * 2**20
JOB_FILE = "job.toml"
THERE = "auto"  # what a driver calls the cluster it runs on


@dataclass(frozen=True)
class Job:
    """The verb and its arguments, the job file with absolute paths, and the submission id."""

    verb: str
    experiment: Experiment
    toml: str
    name: str
    arguments: tuple[str, ...]

    @property
    def folder(self) -> str:
        return self.experiment.run.folder

    @property
    def command(self) -> str:
        """The entry point; `exec`, so that the signal of a stop reaches the run, not its shell."""
        # -m, because a node need not have the package installed: it runs from the files that were
        # sent.
        return f"exec python -m udl_dist {self.verb} {shlex.join(self.arguments)}"


def load(path: Path, flags: Mapping[str, str]) -> Job:
    """Read the job file of a run or a search; a run folder means that the run is evaluated."""
    file = path / "experiment.toml" if path.is_dir() else path
    if file.is_file() and file.stat().st_size > JOB_BYTES:
        raise UsageError(f"{file} is not a job file: it has {file.stat().st_size:,} bytes")
    if path.is_dir():
        return _evaluation(path, flags)
    # A [search] table alone tells the job file of a search from that of a run.
    if "search" not in read_toml(path):
        wanted = _with_absolute_paths(experiments.load(path, flags))
        return _job("train", wanted, wanted.to_toml())
    found = searches.load(path, flags)
    # The job of a search is that of its trials, with axes.
    found = replace(found, base=_with_absolute_paths(found.base))
    return _job("search", found.base, found.to_toml())


def _evaluation(folder: Path, flags: Mapping[str, str]) -> Job:
    """`udl evaluate` of a run, with at least one worker: the head runs drivers only."""
    if not (file := folder / "experiment.toml").is_file():
        raise UsageError(
            f"{folder} is no run folder: it has no experiment.toml; a job file is submitted by its"
            " name"
        )
    # Arguments of udl evaluate that are no settings.
    own = {name: flags[name] for name in ("checkpoint", "device") if name in flags}
    wanted = from_flags(
        MetricSettings, {name: text for name, text in flags.items() if name not in own}
    )
    if wanted.address:
        raise UsageError(
            "address is for udl evaluate: give udl submit --address, the cluster's dashboard"
        )
    wanted = replace(
        wanted,
        data=wanted.data if wanted.data == "digits" else _absolute(wanted.data),
        # Without a worker the driver would compute, on a head that may have neither GPU nor CPU
        # for it.
        workers=max(1, wanted.workers),
        address=THERE,
        extractor=wanted.extractor if wanted.extractor in OWN else _absolute(wanted.extractor),
    )
    defaults = to_dict(MetricSettings())
    # As few flags as possible: this command is what the dashboard shows.
    asked = {
        name: value for name, value in to_dict(wanted).items() if value != defaults[name]
    } | own
    arguments = [
        str(as_path(str(folder))),
        # Joined by =, so that an empty value and one that begins with dashes pass `cli` unchanged.
        *(f"--{name.replace('_', '-')}={_text(asked[name])}" for name in asked),
    ]
    # The experiment is not run: the checks before a submission read its folder, data and workers.
    made = experiments.load(file, {})
    made = made.replace(
        # No address: that of its own training would be refused below.
        run=replace(made.run, folder=arguments[0], address="", workers=wanted.workers)
    )
    made = _with_absolute_paths(made)
    return _job("evaluate", made, made.to_toml(), tuple(arguments))


def _text(value: Any) -> str:
    """A value as the text of a flag."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _job(
    verb: str,
    experiment: Experiment,
    toml: str,
    arguments: tuple[str, ...] = (JOB_FILE,),
) -> Job:
    """Equal jobs with equal run folders get equal names, and so can be resumed and stopped."""
    # Without a query, which may hold an endpoint or a signature.
    last = experiment.run.folder.partition("?")[0].rstrip("/").rpartition("/")[2]
    # The last part of the folder, for people; the hash below is what identifies the job.
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", last)[:40].strip("-")
    # Quoted, so that no two lists of arguments give the same text.
    what = shlex.join((verb, *arguments, toml)).encode()
    return Job(
        verb, experiment, toml, f"udl-{plain}-{hashlib.sha256(what).hexdigest()[:12]}", arguments
    )


def _with_absolute_paths(experiment: Experiment) -> Experiment:
    """The same experiment for another machine and working directory."""
    if experiment.run.address:
        raise UsageError(
            "run.address is for udl train: give udl submit --address, the cluster's dashboard"
        )
    run, track = experiment.run, experiment.track
    return experiment.replace(
        data=experiment.data.absolute(),
        track=replace(track, key_file=_absolute(track.key_file)),
        run=replace(run, folder=_absolute(run.folder), address=THERE),
    )


def _absolute(path: str) -> str:
    # `~` is the home of the user who submits; there it would be that of the user who runs Ray.
    return str(as_path(path)) if path and not scheme_of(path) else path


@dataclass(frozen=True)
class JobPackage:
    """What is sent: a zip, and how many files and bytes there are in it."""

    content: bytes
    files: int
    bytes: int

    @property
    def name(self) -> str:
        """A name as Ray forms them, from the content: what is there already is not sent again."""
        return f"_ray_pkg_{hashlib.sha256(self.content).hexdigest()[:16]}.zip"


def packed(toml: str) -> JobPackage:
    """The package and a job, in memory; raises UsageError above LIMIT_BYTES."""
    # Sizes first: a file of a gigabyte that lies in the package by mistake is not read.
    sizes = [len(toml.encode()), *(file.stat().st_size for file in files())]
    if sum(sizes) > LIMIT_BYTES:
        raise UsageError(
            f"package and job are {sum(sizes):,} bytes, more than {LIMIT_BYTES:,}: files"
            f" that do not belong to it lie in {PACKAGE}"
        )
    contents = {JOB_FILE: toml.encode()}
    for file in files():
        # In a folder of the package's name, so that `python -m` finds it in the working directory.
        contents[f"{PACKAGE.name}/{file.relative_to(PACKAGE)}"] = file.read_bytes()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in contents.items():
            # Without a time: equal files give an equal name.
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return JobPackage(made.getvalue(), len(sizes), sum(sizes))


def files() -> list[Path]:
    """Code and templates of the package; no links, hidden files or byte code."""
    return [
        file
        for file in sorted(PACKAGE.rglob("*"))
        if file.suffix in SUFFIXES
        and file.is_file()
        # A link may lead to any file of this disk; hidden files are where secrets lie (.env,
        # .git).
        and not file.is_symlink()
        and not any(
            part.startswith((".", "__pycache__")) for part in file.relative_to(PACKAGE).parts
        )
    ]
