"""A run folder in object storage: what lies on a disk is a working copy, and this carries it to and
fro.

The launcher and each node have a working folder of their own, so nothing but the storage has to be
shared. Beside the run itself the storage holds `.live/` while it goes on: who holds it, what is
asked of the workers, what nodes tell. Knows no Ray and no tensor.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from udl_dist.data.settings import cache_folder
from udl_dist.errors import DataError
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage import objects
from udl_dist.storage.uris import is_remote, joined, parse

TICK_SECONDS = 2.0
LIVE = ".live"
ASKED = ("stop", "resize")


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
    """One end of the way between a working folder and the storage; what has not changed is not
    carried again.
    """

    def __init__(self, uri: str, folder: RunFolder) -> None:
        self.uri, self.folder = uri, folder
        self._pushed: dict[str, tuple[int, int]] = {}
        self._pulled: dict[str, str] = {}
        self._one = threading.Lock()  # an older writing must not end after a newer one

    def at(self, name: str) -> str:
        """The URI of something in the run folder."""
        return joined(self.uri, name)

    def listing(self, below: str = "") -> dict[str, str]:
        """What there is, by its name in the run folder -> what tells one writing of it from the
        next.
        """
        found = objects.listing(self.at(below) if below else self.uri)
        return {f"{below}/{name}" if below else name: stamp for name, stamp in found.items()}

    def push(self, path: Path, name: str = "") -> None:
        """Carry a file to the storage, if it is there and has changed since it last was carried."""
        name = name or str(path.relative_to(self.folder.path))
        with self._one, contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if self._pushed.get(name) != (stamp := (status.st_mtime_ns, status.st_size)):
                objects.upload(path, self.at(name))
                self._pushed[name] = stamp

    def pull(self, name: str, stamp: str, target: Path) -> bool:
        """Fetch an object, if it has changed since it last was fetched; whether it had."""
        if self._pulled.get(name) == stamp:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        coming = target.with_name(f".{target.name}.coming")
        coming.write_bytes(
            objects.read(self.at(name))
        )  # whatever is there now: it may be written again meanwhile
        coming.replace(target)
        self._pulled[name] = stamp
        return True


class Courier:
    """A context in which a thread calls `carry` every two seconds, and once more at the end.

    Storage that does not answer is told once and asked again; the run goes on meanwhile.
    """

    def __init__(self, carry: Callable[[], None], say: Callable[[str], None]) -> None:
        self._carry, self._say, self._told = carry, say, False
        self._closed, self._one = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True, name="courier")

    def __enter__(self) -> Courier:
        self.carry()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        self.carry()

    def carry(self) -> None:
        """Carry now; any thread may ask for it."""
        with self._one:
            try:
                self._carry()
                self._told = False
            except (DataError, OSError) as error:
                if not self._told:
                    self._say(
                        f"ALARM: the run folder in object storage: {error}; asked again until it"
                        " answers"
                    )
                self._told = True

    def _run(self) -> None:
        while not self._closed.wait(TICK_SECONDS):
            self.carry()
