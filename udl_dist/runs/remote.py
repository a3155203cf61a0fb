"""A run folder in object storage, synced with working copies on the disks of its processes.

The launcher and each node have their own working folder, so they share only the storage. During the
run the storage also has `.live/`: the lease, requests to the workers, reports of the nodes.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from udl_dist.data.settings import cache_folder
from udl_dist.errors import DataError
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage import objects
from udl_dist.storage.uris import is_remote, joined, parse

SYNC_SECONDS = 2.0  # so late a request, a message or a heartbeat may arrive
LIVE = ".live"  # the folder of what matters only while the run is running
REQUESTS = ("stop", "resize")  # files of a run folder that the launcher makes and ranks look for
MANIFEST = "manifest.json"
TEMPORARY = ".writing-"  # as of training.checkpoint, which deletes such leftovers


def working(folder: str, role: str) -> Path:
    """The local working folder of the `launcher` or a `node`; a local run folder itself."""
    if not is_remote(folder):
        return Path(folder)
    path = parse(folder).path.rstrip("/")
    # The name is for people; the hash tells runs of the same name in two buckets apart.
    name = f"{path.rpartition('/')[2]}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    return cache_folder("") / "runs" / name / role


class Mirror:
    """A working folder of a remote run, synced by a thread; copies only changed files."""

    def __init__(self, uri: str, folder: RunFolder) -> None:
        self.uri, self.folder = uri, folder
        # By name in the run folder: time of change in ns and bytes of the file that was uploaded,
        # and the stamp of the object that was downloaded.
        self._pushed: dict[str, tuple[int, int]] = {}
        self._pulled: dict[str, str] = {}
        self._pushing = threading.Lock()  # or an older upload might end after a newer one
        self._syncing, self._closed = threading.Lock(), threading.Event()
        self._alarmed = False

    def _copy(self) -> None:
        """Copy what has changed, both ways."""
        raise NotImplementedError

    def sync(self) -> None:
        """Sync now, in any thread. Storage that fails is reported once; the run continues."""
        # The thread and the driver must not copy at the same time.
        with self._syncing:
            try:
                self._copy()
                self._alarmed = False
            except (DataError, OSError) as error:
                if not self._alarmed:
                    where = "the run folder in object storage"
                    self.folder.say(f"ALARM: {where}: {error}; retrying until it answers")
                self._alarmed = True

    @contextlib.contextmanager
    def _synced(self) -> Iterator[None]:
        """Sync at the start, every two seconds, and at the end."""
        thread = threading.Thread(target=self._run, daemon=True, name="sync")
        self.sync()
        thread.start()
        try:
            yield
        finally:
            self._closed.set()
            thread.join()
            self.sync()  # what was written since the thread's last look

    def _run(self) -> None:
        while not self._closed.wait(SYNC_SECONDS):
            self.sync()

    def at(self, name: str) -> str:
        """The URI of something in the run folder."""
        return joined(self.uri, name)

    def listing(self, below: str = "") -> dict[str, str]:
        """The objects of the run: name in the run folder -> stamp of its last writing."""
        found = objects.listing(self.at(below) if below else self.uri)
        return {f"{below}/{name}" if below else name: stamp for name, stamp in found.items()}

    def push(self, path: Path, name: str = "") -> None:
        """Upload a file, if it exists and has changed since its last upload."""
        name = name or str(path.relative_to(self.folder.path))
        with self._pushing, contextlib.suppress(FileNotFoundError):
            # Looked at before the upload, so that a change during it is uploaded the next time.
            status = path.stat()
            if self._pushed.get(name) != (stamp := (status.st_mtime_ns, status.st_size)):
                objects.upload(path, self.at(name))
                self._pushed[name] = stamp

    def fetch(self, names: Iterable[str]) -> None:
        """Download those of these files that the storage has."""
        remote = self.listing()  # one request for all of them
        for name in names:
            if name in remote:
                self.pull(name, remote[name])

    def pull(self, name: str, stamp: str) -> bool:
        """Download an object, if it has changed since its last download; return whether it had."""
        if self._pulled.get(name) == stamp:
            return False
        target = self.folder.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # In one request, whatever is there now: it may be written again meanwhile, and a read by
        # ranges would fail at that.
        content, version = objects.read_versioned(self.at(name))
        if version is None:  # deleted since it was listed
            return False
        part = target.with_name(f".{target.name}.part")
        part.write_bytes(content)
        part.replace(target)
        self._pulled[name] = stamp
        return True


def push_checkpoint(mirror: Mirror, checkpoint: Path, stay: Iterable[Path]) -> None:
    """Upload a checkpoint, delete older ones not in `stay`; raise OSError if storage fails.

    It exists once its manifest does, which is uploaded last and deleted first.
    """
    try:
        # Curves first: a run that resumes elsewhere from this checkpoint must not lack a point.
        mirror.push(mirror.folder.curves)
        files = sorted(checkpoint.iterdir(), key=lambda path: (path.name == MANIFEST, path.name))
        for path in files:
            objects.upload(path, mirror.at(f"checkpoints/{checkpoint.name}/{path.name}"))
        # Only now that the new one is complete: a kill at any time leaves one to resume from.
        names = {path.name for path in stay}
        for name in manifests_first(mirror.listing("checkpoints")):
            # Numbers of images with leading zeros: their order as texts is their order.
            if _images(name) not in names and _images(name) < checkpoint.name:
                objects.remove(mirror.at(name))
    except DataError as error:
        # As an error of a disk, which the recorder reports while training goes on.
        raise OSError(str(error)) from None


def fetch_checkpoints(mirror: Mirror) -> None:
    """Make the working folder's checkpoints equal to those of the storage."""
    remote = mirror.listing("checkpoints")
    complete = {_images(name) for name in remote if name.endswith(f"/{MANIFEST}")}
    for path in mirror.folder.checkpoints.glob("[0-9]*"):
        if path.name not in complete:  # from an earlier run, or its upload never ended
            shutil.rmtree(path)
    for images in sorted(complete):
        _fetch_checkpoint(mirror, images, [name for name in remote if _images(name) == images])


def manifests_first(names: Iterable[str]) -> list[str]:
    """Sorted so that an interrupted deletion leaves no checkpoint that looks complete."""
    return sorted(names, key=lambda name: (not name.endswith(f"/{MANIFEST}"), name))


def _fetch_checkpoint(mirror: Mirror, images: str, names: Iterable[str]) -> None:
    target = mirror.folder.checkpoints / images
    local, remote = target / MANIFEST, mirror.at(f"checkpoints/{images}/{MANIFEST}")
    # A manifest has the hash of every file: if it is equal, so is the checkpoint.
    if local.exists() and local.read_bytes() == objects.read(remote):
        return
    # Downloaded under a name that does not count as a checkpoint, and renamed when complete.
    part = mirror.folder.checkpoints / f"{TEMPORARY}{images}"
    for path in (part, target):
        shutil.rmtree(path, ignore_errors=True)
    part.mkdir(parents=True)
    for name in names:
        objects.download(mirror.at(name), part / name.rpartition("/")[2])
    part.rename(target)


def _images(name: str) -> str:
    """The folder of a checkpoint, its number of images, in the name of an object."""
    return name.split("/")[1]
