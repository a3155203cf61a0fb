"""A blob on disk, to see what the readers of any blob ask for."""

from pathlib import Path

from udl_dist.storage.transfers import Limits, Pending, Traffic


class FileBlob:
    """A file on disk, small enough for memory."""

    def __init__(self, path: Path) -> None:
        self.name, self.traffic, self.stamp = str(path), Traffic(), "mtime:0"
        self._data = path.read_bytes()
        self.size = len(self._data)

    def begin(self, start: int, length: int) -> Pending[bytes]:
        return Pending(lambda: self._data[start : start + length], Limits(), self.traffic, length)
