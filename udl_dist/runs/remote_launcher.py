"""The launcher's end: it holds the run in the storage, shows what the nodes tell, and joins it into
the run.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from udl_dist.core.files import append_new
from udl_dist.data.loader.opening import Prepared, open_index
from udl_dist.data.settings import cache_folder
from udl_dist.errors import DataError
from udl_dist.runs.lease import Lease
from udl_dist.runs.remote import ASKED, LIVE, Courier, Mirror
from udl_dist.runs.remote_checkpoints import manifests_first
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage import objects
from udl_dist.storage.uris import is_remote, name_of

KEPT = (
    "experiment.toml",
    "curves.jsonl",
    "messages.log",
    "damaged.txt",
    "non_finite.jsonl",
    "data.json",
    "environment.jsonl",
    "result.json",
)
RAY = ".ray"  # what Ray keeps meanwhile
OURS = ("experiment.toml", "messages.log", "damaged.txt", "result.json")


class Launcher(Mirror):
    """To be used within `carrying`, by whoever holds the working folder."""

    def __init__(self, uri: str, folder: RunFolder) -> None:
        super().__init__(uri, folder)
        self._lengths: dict[
            str, int
        ] = {}  # bytes of messages that were taken over, by node and group
        self._lease = Lease(self.at(f"{LIVE}/lease.json"), folder)
        self._courier = Courier(self._carry, folder.say)

    @contextlib.contextmanager
    def carrying(self) -> Iterator[Launcher]:
        """Hold the run, fetch what is known of it, and carry until the end; raise UsageError if
        another holds it.
        """
        self._lease.take()
        try:
            self._fetch()
            with self._courier:
                yield self
        finally:
            with contextlib.suppress(DataError):  # how the run ended is what counts
                self._clear()
                self._lease.drop()

    def carry(self) -> None:
        """Carry now: before it is judged what the nodes have told."""
        self._courier.carry()

    def begin_group(self) -> None:
        """Forget what was asked of the workers and what they told; the next ones know theirs by a
        new name.
        """
        self._clear()
        objects.write(self.at(f"{LIVE}/group"), uuid.uuid4().hex[:8].encode())

    def shared(self, prepared: Prepared) -> Prepared:
        """The same data by indexes that each node finds: those made here of far shards are put into
        the run.
        """

        def reachable(index: str) -> str:
            return self._put(index) if index and not is_remote(index) else index

        train, held_out = (
            tuple(map(reachable, part)) for part in (prepared.train, prepared.held_out)
        )
        return replace(prepared, train=train, held_out=held_out)

    def _put(self, index: str) -> str:
        if not is_remote(open_index(index, cache_folder("")).shard_path(0)):
            return index
        there = self.at(f"indexes/{Path(index).name}")
        objects.upload(Path(index), there)
        return there

    def set_aside(self) -> str:
        """Move all of the run into `before-…` in the storage; say where, "" if there was
        nothing.
        """
        there = self.listing()
        kept = [name for name in there if not name.startswith(("before-", f"{LIVE}/", f"{RAY}/"))]
        if not kept:
            return ""
        aside = f"before-{len({name.split('/')[0] for name in there if name.startswith('before-')}) + 1}"
        for name in manifests_first(kept):
            objects.move(self.at(name), self.at(f"{aside}/{name}"))
        self._fetch()
        return name_of(self.at(aside))

    def _fetch(self) -> None:
        """Make the working folder what the storage holds, but for checkpoints and pictures."""
        there = self.listing()
        for name in KEPT:
            (self.folder.path / name).unlink(missing_ok=True)
            if name in there:
                self.pull(name, there[name], self.folder.path / name)

    def _clear(self) -> None:
        for name in (*self.listing(LIVE), *self.listing(RAY)):
            if not name.endswith("/lease.json"):
                objects.remove(self.at(name))
        for asked in ASKED:
            self._pushed.pop(f"{LIVE}/{asked}", None)
        shutil.rmtree(self.folder.path / LIVE, ignore_errors=True)

    def _carry(self) -> None:
        if not self._lease.renew():
            self.folder.say("ALARM: another run has taken this run folder: stopping")
            self.folder.ask_stop()
        for asked in ASKED:
            self.push(self.folder.path / asked, f"{LIVE}/{asked}")
        for name, stamp in self.listing(LIVE).items():
            _, place, *rest = name.split("/")
            if rest:
                self._take(name, stamp, place, "/".join(rest))
        if stamp := objects.stamp(self.at("curves.jsonl")):
            self.pull("curves.jsonl", stamp, self.folder.curves)
        for name in OURS:
            self.push(self.folder.path / name)

    def _take(self, name: str, stamp: str, place: str, what: str) -> None:
        """Something a node told: messages are appended, damaged records joined, the rest is kept as
        it is.
        """
        told = self.folder.path / name
        if not self.pull(name, stamp, told):
            return
        if what == "messages.log":
            known = self._lengths.get(place, 0)
            fresh = told.read_bytes()[known:]
            fresh = fresh[: fresh.rfind(b"\n") + 1]
            self._lengths[place] = known + len(fresh)
            with self.folder.messages.open("ab") as file:
                file.write(fresh)
        elif what == "damaged.txt":
            append_new(self.folder.damaged, told.read_text(encoding="utf-8").splitlines())
        elif what != "failure.json" or not self.folder.failure():
            (self.folder.path / what).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(told, self.folder.path / what)


def carried(uri: str, folder: RunFolder) -> contextlib.AbstractContextManager[Launcher | None]:
    """The launcher's end, or nothing where the run folder is on a disk."""
    return Launcher(uri, folder).carrying() if is_remote(uri) else contextlib.nullcontext()
