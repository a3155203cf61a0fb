"""A run folder in object storage: its files on a disk are a working copy, which is synced with the
storage.

The launcher and each node have a working folder of their own, so nothing but the storage is shared.
While the run goes on, the storage has `.live/` as well: who holds the run, requests to the workers,
reports of the nodes. Knows no Ray and no tensor.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

from udl_dist.data.settings import cache_folder
from udl_dist.errors import DataError
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage import objects
from udl_dist.storage.uris import is_remote, joined, parse

SYNC_SECONDS = 2.0
LIVE = ".live"
REQUESTS = ("stop", "resize")


def working(folder: str, role: str) -> Path:
    """The folder on this machine's disk in which the `launcher` or a `node` works: the run folder
    itself if local.
    """
    if not is_remote(folder):
        return Path(folder)
    path = parse(folder).path.rstrip("/")
    name = f"{path.rpartition('/')[2]}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    return cache_folder("") / "runs" / name / role


class Mirror:
    """One end of a remote run: its working folder, synced by a thread; unchanged files are not
    copied again.
    """

    def __init__(self, uri: str, folder: RunFolder) -> None:
        self.uri, self.folder = uri, folder
        self._pushed: dict[str, tuple[int, int]] = {}
        self._pulled: dict[str, str] = {}
        self._pushing = threading.Lock()  # an older writing must not end after a newer one
        self._syncing, self._closed = threading.Lock(), threading.Event()
        self._alarmed = False

    def _sync(self) -> None:
        """Copy what has changed, both ways."""
        raise NotImplementedError

    def carry(self) -> None:
        """Sync now, from any thread. Storage that fails is reported once and tried again; the run
        goes on.
        """
        with self._syncing:
            try:
                self._sync()
                self._alarmed = False
            except (DataError, OSError) as error:
                if not self._alarmed:
                    where = "the run folder in object storage"
                    self.folder.say(f"ALARM: {where}: {error}; asked again until it answers")
                self._alarmed = True

    @contextlib.contextmanager
    def _synced(self) -> Iterator[None]:
        """Sync at the start, every two seconds, and at the end."""
        thread = threading.Thread(target=self._run, daemon=True, name="sync")
        self.carry()
        thread.start()
        try:
            yield
        finally:
            self._closed.set()
            thread.join()
            self.carry()

    def _run(self) -> None:
        while not self._closed.wait(SYNC_SECONDS):
            self.carry()

    def at(self, name: str) -> str:
        """The URI of something in the run folder."""
        return joined(self.uri, name)

    def listing(self, below: str = "") -> dict[str, str]:
        """The objects of the run: name in the run folder -> what tells one writing of it from the
        next.
        """
        found = objects.listing(self.at(below) if below else self.uri)
        return {f"{below}/{name}" if below else name: stamp for name, stamp in found.items()}

    def push(self, path: Path, name: str = "") -> None:
        """Copy a file to the storage, if it exists and has changed since the last copy."""
        name = name or str(path.relative_to(self.folder.path))
        with self._pushing, contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if self._pushed.get(name) != (stamp := (status.st_mtime_ns, status.st_size)):
                objects.upload(path, self.at(name))
                self._pushed[name] = stamp

    def pull(self, name: str, stamp: str, target: Path) -> bool:
        """Fetch an object, if it has changed since it was last fetched; whether it had."""
        if self._pulled.get(name) == stamp:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        content, found = objects.read_versioned(self.at(name))  # written again or deleted since
        if found is None:
            return False
        part.write_bytes(content)
        part.replace(target)
        self._pulled[name] = stamp
        return True
