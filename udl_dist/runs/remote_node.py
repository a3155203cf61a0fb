"""The workers' end of a remote run: their files and reports go to the storage, requests come from
there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from typing import IO

from udl_dist.runs.heartbeat import machine
from udl_dist.runs.remote import LIVE, REQUESTS, Mirror
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage import objects
from udl_dist.storage.uris import is_remote

# What stays in the working folder from one group of workers to the next.
STAYS = ("checkpoints", "wandb", "lock")
OF_RANK_0 = (
    "curves.jsonl",
    "data.json",
    "environment.jsonl",
    "non_finite.jsonl",
    "wandb/run_id",
    "wandb/sent",
)
REPORTS = ("messages.log", "damaged.txt", "failure.json", "stacks-*.txt", "ranks/*/*")


class Node(Mirror):
    """The end of one rank. Rank 0 syncs the run; one rank of each machine syncs what its ranks
    report.
    """

    def __init__(self, uri: str, folder: RunFolder, leads: bool) -> None:
        super().__init__(uri, folder)
        self._leads = leads
        self._elected: IO[bytes] | None = None
        self._reports = ""  # where those of this machine and group go

    @contextlib.contextmanager
    def carrying(self) -> Iterator[Node]:
        """Begin with a clean working folder and the files of the run; sync until the end of the
        context.
        """
        self._begin()
        try:
            with self._synced():
                yield self
        finally:
            if self._elected:
                self._elected.close()

    def _begin(self) -> None:
        """The first rank of a group on this machine deletes what an earlier group has left."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        group = objects.read_versioned(self.at(f"{LIVE}/group"))[0].decode()
        self._reports = f"{LIVE}/{hashlib.sha256(machine().encode()).hexdigest()[:12]}-{group}"
        with (self.folder.path / "lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            if lock.read() != f"group {group}":
                for path in self.folder.path.iterdir():
                    if path.name not in STAYS:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                lock.truncate(0)
                lock.write(f"group {group}")
        remote = self.listing() if self._leads else {}
        for name in OF_RANK_0:
            if name in remote:
                self.pull(name, remote[name], self.folder.path / name)

    def _sync(self) -> None:
        live = self.listing(LIVE)
        for request in REQUESTS:
            flag = self.folder.path / request
            flag.touch() if f"{LIVE}/{request}" in live else flag.unlink(missing_ok=True)
        if self._leads:
            for name in OF_RANK_0:
                self.push(self.folder.path / name)
            for picture in sorted(self.folder.pictures.glob("*.png")):
                self.push(picture)
        if self._is_elected():
            for pattern in REPORTS:
                for path in sorted(self.folder.path.glob(pattern)):
                    self.push(path, f"{self._reports}/{path.relative_to(self.folder.path)}")

    def _is_elected(self) -> bool:
        """Whether this rank syncs the reports of its machine; another one does when its process has
        ended.
        """
        if self._elected is None:
            file = (self.folder.path / ".courier").open("wb")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._elected = file
            except OSError:
                file.close()
        return self._elected is not None


def carried(
    uri: str, folder: RunFolder, leads: bool
) -> contextlib.AbstractContextManager[Node | None]:
    """The end of a rank, or nothing where the run folder is on a disk that all see."""
    return Node(uri, folder, leads).carrying() if is_remote(uri) else contextlib.nullcontext()
