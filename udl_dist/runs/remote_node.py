"""The workers' side of a remote run: uploads their files and reports, downloads requests."""

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

# What the next group of workers still needs in the working folder: checkpoints need not be
# downloaded again, and W&B's folder may have points that were never sent.
STAYS = ("checkpoints", "wandb", "lock")
# Rank 0 writes these; the next rank 0 may be on another machine, and continues them.
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
    """The side of one rank. Rank 0 syncs the run; one rank per machine syncs all its reports."""

    def __init__(self, uri: str, folder: RunFolder, is_main: bool) -> None:
        super().__init__(uri, folder)
        self._is_main = is_main
        self._elected: IO[bytes] | None = None
        self._reports = ""  # the prefix for this machine and group

    @contextlib.contextmanager
    def syncing(self) -> Iterator[Node]:
        """Start with a clean working folder and the files of the run; sync until the end."""
        self._begin()
        try:
            with self._synced():
                yield self
        finally:
            if self._elected:
                self._elected.close()

    def _begin(self) -> None:
        """The first rank of a group on this machine deletes the files of earlier groups."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        group = objects.read_versioned(self.at(f"{LIVE}/group"))[0].decode()
        self._reports = f"{LIVE}/{hashlib.sha256(machine().encode()).hexdigest()[:12]}-{group}"
        # The lock file names the group for which the folder is clean, so ranks clean it once.
        with (self.folder.path / "lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            if lock.read() != f"group {group}":
                for path in self.folder.path.iterdir():
                    # A former stop, failure or log must not pass for one of this group.
                    if path.name not in STAYS:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                lock.truncate(0)
                lock.write(f"group {group}")
        if self._is_main:
            self.fetch(OF_RANK_0)

    def _copy(self) -> None:
        # One listing every two seconds and rank: the only way in which a request gets here.
        live = self.listing(LIVE)
        for request in REQUESTS:
            # Rank 0 looks for the file, as it does where the run folder is on a shared disk.
            flag = self.folder.path / request
            flag.touch() if f"{LIVE}/{request}" in live else flag.unlink(missing_ok=True)
        if self._is_main:
            for name in OF_RANK_0:
                self.push(self.folder.path / name)
            for picture in sorted(self.folder.pictures.glob("*.png")):
                self.push(picture)
        if self._is_elected():
            for pattern in REPORTS:
                for path in sorted(self.folder.path.glob(pattern)):
                    self.push(path, f"{self._reports}/{path.relative_to(self.folder.path)}")

    def _is_elected(self) -> bool:
        """Whether this rank syncs its machine's reports; the lock passes on when it ends."""
        if self._elected is None:
            # Ranks of a machine share the working folder: one upload of each report is enough.
            file = (self.folder.path / ".courier").open("wb")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._elected = file
            except OSError:
                file.close()
        return self._elected is not None


def sync_node(
    uri: str, folder: RunFolder, is_main: bool
) -> contextlib.AbstractContextManager[Node | None]:
    """The side of a rank in a remote run; None for a run folder on a shared disk."""
    return Node(uri, folder, is_main).syncing() if is_remote(uri) else contextlib.nullcontext()
