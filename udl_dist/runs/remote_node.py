"""The workers' end: what they keep and say goes to the storage, what is asked of them comes from
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
from udl_dist.runs.remote import ASKED, LIVE, Courier, Mirror
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage import objects
from udl_dist.storage.uris import is_remote

STAYS = (
    "checkpoints",
    ".faults",
    "wandb",
    "lock",
)  # in the working folder from one group of workers to the next
OF_LEADER = (
    "curves.jsonl",
    "data.json",
    "environment.jsonl",
    "non_finite.jsonl",
    "wandb/run_id",
    "wandb/sent",
)
TOLD = ("messages.log", "damaged.txt", "failure.json", "stacks-*.txt", "ranks/*/*")


class Node(Mirror):
    """The end of one rank. What ranks of a machine share is carried by one of them; rank 0 carries
    the run.
    """

    def __init__(self, uri: str, folder: RunFolder, leads: bool) -> None:
        super().__init__(uri, folder)
        self._leads = leads
        self._elected: IO[bytes] | None = None
        self._place = ""

    @contextlib.contextmanager
    def carrying(self) -> Iterator[Node]:
        """Begin with a clean working folder and what is known of the run; carry until the end of
        the context.
        """
        self._begin()
        try:
            with Courier(self._carry, self.folder.say):
                yield self
        finally:
            if self._elected:
                self._elected.close()

    def _begin(self) -> None:
        """The first rank of a group on this machine wipes what an earlier group has left."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        there = self.listing(LIVE)
        group = objects.read(self.at(f"{LIVE}/group")).decode() if f"{LIVE}/group" in there else ""
        self._place = f"{LIVE}/{hashlib.sha256(machine().encode()).hexdigest()[:12]}-{group}"
        with (self.folder.path / "lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            if lock.read() != f"group {group}":
                for path in self.folder.path.iterdir():
                    if path.name not in STAYS:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                lock.truncate(0)
                lock.write(f"group {group}")
        if self._leads:
            known = self.listing()
            for name in OF_LEADER:
                if name in known:
                    self.pull(name, known[name], self.folder.path / name)

    def _carry(self) -> None:
        there = self.listing(LIVE)
        for asked in ASKED:
            flag = self.folder.path / asked
            flag.touch() if f"{LIVE}/{asked}" in there else flag.unlink(missing_ok=True)
        if self._leads:
            for name in OF_LEADER:
                self.push(self.folder.path / name)
            for picture in sorted(self.folder.pictures.glob("*.png")):
                self.push(picture)
        if self._is_elected():
            for pattern in TOLD:
                for path in sorted(self.folder.path.glob(pattern)):
                    self.push(path, f"{self._place}/{path.relative_to(self.folder.path)}")

    def _is_elected(self) -> bool:
        """Whether this rank carries what the ranks of its machine share; another one does when it
        is gone.
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
