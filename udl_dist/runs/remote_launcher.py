"""The launcher's side of a remote run: holds the lease, merges the nodes' reports."""

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
from udl_dist.runs.remote import LIVE, REQUESTS, Mirror, manifests_first
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage import objects
from udl_dist.storage.uris import is_remote, name_of

RAY = ".ray"  # Ray writes it during a run
# Files that the launcher alone writes; all others of the run come from rank 0.
PUSHED = ("experiment.toml", "messages.log", "damaged.txt", "result.json")
OF_RUN = (*PUSHED, "curves.jsonl", "non_finite.jsonl", "data.json", "environment.jsonl")


class Launcher(Mirror):
    """Used within `syncing`, by the process that has locked the working folder."""

    def __init__(self, uri: str, folder: RunFolder) -> None:
        super().__init__(uri, folder)
        self._lengths: dict[str, int] = {}  # bytes of messages in the log, by node and group
        self._lease = Lease(self.at(f"{LIVE}/lease.json"), folder)

    @contextlib.contextmanager
    def syncing(self) -> Iterator[Launcher]:
        """Acquire the run, fetch its files, sync until the end; UsageError if it is in use."""
        self._lease.acquire()  # first: nothing is changed in a run that another process has
        try:
            self._fetch()
            with self._synced():
                yield self
        finally:
            with contextlib.suppress(DataError):  # or it would hide how the run ended
                self._clear()
                self._lease.release()

    def begin_group(self) -> None:
        """Delete requests and reports, and name the next group of workers."""
        self._clear()
        # Nodes report under this name, so that their logs start from the beginning in each group.
        objects.write(self.at(f"{LIVE}/group"), uuid.uuid4().hex[:8].encode())

    def shared(self, prepared: Prepared) -> Prepared:
        """The same data by indexes that every node can open: local ones are uploaded to the run."""
        train = tuple(map(self._reachable, prepared.train))
        return replace(
            prepared, train=train, held_out=tuple(map(self._reachable, prepared.held_out))
        )

    def _reachable(self, index: str) -> str:
        if not index or is_remote(index):
            return index
        # Shards on a disk are the same path on every node, and so is their index.
        if not is_remote(open_index(index, cache_folder("")).shard_path(0)):
            return index
        # The index of remote shards, made here, lies in a cache that other nodes cannot see.
        copy = self.at(f"indexes/{Path(index).name}")
        objects.upload(Path(index), copy)
        return copy

    def set_aside(self) -> str:
        """Move the run to `before-…` in the storage; return where, "" if there was nothing."""
        remote = self.listing()
        # Not what was moved earlier, nor what this very command has made meanwhile.
        names = [name for name in remote if not name.startswith(("before-", LIVE, RAY))]
        # A listing may have empty objects for folders under names that no object has.
        moved = [name for name in names if objects.exists(self.at(name))]
        if not moved:
            return ""
        earlier = {name.split("/")[0] for name in remote if name.startswith("before-")}
        aside = f"before-{len(earlier) + 1}"
        for name in manifests_first(moved):
            objects.move(self.at(name), self.at(f"{aside}/{name}"))
        self._fetch()
        return name_of(self.at(aside))

    def _fetch(self) -> None:
        """Make the working folder equal to the storage, without checkpoints and pictures."""
        # What this machine has may be of an earlier run, or older than where another one got to.
        for name in OF_RUN:
            (self.folder.path / name).unlink(missing_ok=True)
        self.fetch(OF_RUN)

    def _clear(self) -> None:
        for name in (*self.listing(LIVE), *self.listing(RAY)):
            if not name.endswith("/lease.json"):
                objects.remove(self.at(name))
        # Or the next request, another empty file, might pass for the one that was uploaded.
        for request in REQUESTS:
            self._pushed.pop(f"{LIVE}/{request}", None)
        shutil.rmtree(self.folder.path / LIVE, ignore_errors=True)

    def _copy(self) -> None:
        if not self._lease.renew():
            # This process was stopped or cut off for so long that its lease became stale.
            self.folder.say("ALARM: another run holds this run folder now: stopping")
            self.folder.ask_stop()
        for request in REQUESTS:
            self.push(self.folder.path / request, f"{LIVE}/{request}")
        for name, stamp in self.listing(LIVE).items():
            # .live/NODE/… is a report of a node; .live/NAME without more is the launcher's own.
            _, node, *rest = name.split("/")
            if rest and self.pull(name, stamp):
                self._join(node, "/".join(rest))
        # Rank 0 writes the curves; the terminal of the launcher follows this copy.
        if stamp := objects.stamp(self.at("curves.jsonl")):
            self.pull("curves.jsonl", stamp)
        for name in PUSHED:
            self.push(self.folder.path / name)

    def _join(self, node: str, name: str) -> None:
        """Merge a node's report into the run: messages and damage are appended, others copied."""
        report = self.folder.path / LIVE / node / name
        if name == "messages.log":
            # A report is the whole log of its node; only what is new in it is appended.
            known = self._lengths.get(node, 0)
            fresh = report.read_bytes()[known:]
            fresh = fresh[: fresh.rfind(b"\n") + 1]  # the node may be in the middle of a line
            self._lengths[node] = known + len(fresh)
            with self.folder.messages.open("ab") as file:
                file.write(fresh)
        elif name == "damaged.txt":
            append_new(self.folder.damaged, report.read_text(encoding="utf-8").splitlines())
        # The first failure counts: later ones are echoes of it.
        elif name != "failure.json" or not self.folder.failure():
            (self.folder.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(report, self.folder.path / name)


def sync_launcher(
    uri: str, folder: RunFolder
) -> contextlib.AbstractContextManager[Launcher | None]:
    """The launcher's side of a remote run; None for a run folder on a disk."""
    return Launcher(uri, folder).syncing() if is_remote(uri) else contextlib.nullcontext()
