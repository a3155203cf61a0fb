"""A blob on disk, to see what the readers of any blob ask for."""

from __future__ import annotations

from pathlib import Path

from udl_dist.storage.ranges import Answer
from udl_dist.storage.transfers import Traffic


class FileBlob:
    """A file on disk, small enough for memory."""

    def __init__(self, path: Path) -> None:
        self.name, self.traffic, self.stamp = str(path), Traffic(), "mtime:0"
        self._data = path.read_bytes()
        self.size = len(self._data)

    def read(self, start: int, length: int) -> bytes:
        self.traffic.count(requests=1, bytes_read=length)
        return self._data[start : start + length]

    def begin(self, start: int, length: int) -> Answer:
        return _Later(self, start, length)


class _Later:
    """Bytes that are read when they are asked for; so they are not counted if they never are."""

    def __init__(self, blob: FileBlob, start: int, length: int) -> None:
        self._blob, self._range = blob, (start, length)

    def result(self) -> bytes:
        return self._blob.read(*self._range)

    def cancel(self) -> None:
        pass
