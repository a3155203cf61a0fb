"""Shards that ask for far more than they are: each must be refused at the cost of its headers.

python -m tests.bench.bombs NAME checks one in this process and prints what it took.
"""

import gzip
import io
import json
import resource
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

MEGABYTES, SECONDS = 50, 5.0


class Cost(NamedTuple):
    """What a bomb took; `said` is empty if it was not refused."""

    said: str
    megabytes: float  # most memory above the bare import
    seconds: float


def header(name: str, size: bytes | int, kind: bytes = b"0", **fields: int) -> bytes:
    """A tar header with a right checksum, whatever it says."""
    data = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    data[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    data[156:157] = kind
    if "real" in fields:  # GNU sparse: the first of four (offset, bytes), and the real size
        data[386:410], data[483:495] = b"%011o\0%011o\0" % (0, 512), b"%011o\0" % fields["real"]
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def members(content: dict[str, bytes], headers: dict[str, str] | None = None) -> bytes:
    """A tar of some members, with PAX headers if there are any."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), headers or {}
            file.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, before: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + before
        + chunk(b"IDAT", zlib.compress(bytes(2**20)))
        + chunk(b"IEND", b"")
    )


def npy(text: str, version: int = 1, length: int | None = None) -> bytes:
    size = len(text) if length is None else length
    return (
        b"\x93NUMPY"
        + bytes((version, 0))
        + struct.pack("<H" if version == 1 else "<I", size)
        + text.encode()
    )


def image(data: bytes, extension: str = "png") -> Callable[[], bytes]:
    return lambda: members({f"a.{extension}": data})


JPEG = b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 65500, 65500, 1) + bytes(64)
WEBP = (
    b"RIFF"
    + struct.pack("<I", 30)
    + b"WEBPVP8X"
    + struct.pack("<I", 10)
    + bytes(4)
    + b"\xff" * 6
    + bytes(8)
)
SPARSE = {
    "GNU.sparse.major": "1",
    "GNU.sparse.minor": "0",
    "GNU.sparse.realsize": str(2**30),
    "GNU.sparse.name": "a.png",
}
BOMBS: dict[str, Callable[[], bytes]] = {
    "GNU sparse member of 1 GiB": lambda: (
        header("a.png", 512, b"S", real=2**30) + bytes(512 + 1024)
    ),
    "PAX sparse member of 1 GiB (1.0)": lambda: members({"a.png": bytes(512)}, SPARSE),
    "PAX sparse member of 1 GiB (0.1)": lambda: members(
        {"a.png": b"x"}, {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**30)}
    ),
    "member of 2^45 bytes": lambda: (
        header("a.png", b"\x80" + (2**45).to_bytes(11, "big")) + bytes(1024)
    ),
    "member of 2^45 bytes by PAX": lambda: members({"a.png": b"x"}, {"size": str(2**45)}),
    "member of negative size": lambda: header("a.png", b"\xff" * 12) + bytes(1024),
    "long name of 1 GiB": lambda: header("././@LongLink", 2**30, b"L") + bytes(1024),
    "PAX header of 1 GiB": lambda: header("x", 2**30, b"x") + bytes(1024),
    "PAX header of 8 MiB of entries": lambda: (
        header("x", 2**23, b"x") + b"6 a=b\n" * 2**20 + bytes(2**21 + 1024)
    ),
    "name of 900 kB": lambda: members({"k" * 900_000 + ".png": b"x"}),
    "gzip of 256 MiB of zeros": lambda: gzip.compress(bytes(2**28), 1),
    "16,384 extended headers of 1 MiB": lambda: b"\xff" * 512 + header("x", 2**20, b"x") * 2**14,
    "2,000 names of 4 kB of slashes": lambda: members(
        {f"{n:04d}{'/' * 4000}a.b/.png": b"" for n in range(2000)}
    ),
    "PNG of 179 megapixels": image(png(13_400, 13_400)),
    "PNG of 2^31 x 2^31": image(png(2**31 - 1, 2**31 - 1)),
    "PNG of 2^32 - 1 bytes in a chunk": image(
        png(8, 8)[:33] + struct.pack(">I", 2**32 - 1) + b"IDAT" + bytes(99)
    ),
    "JPEG of 65,500 x 65,500": image(JPEG, "jpg"),
    "JPEG of 4 MiB of fill bytes": image(b"\xff\xd8" + b"\xff" * 2**22, "jpg"),
    "JPEG of 2^20 empty segments": image(b"\xff\xd8" + b"\xff\xe1\0\2" * 2**20, "jpg"),
    "PNG of 2^18 empty chunks": image(png(8, 8, chunk(b"teXt", b"") * 2**18)),
    "WebP of 2^24 x 2^24": image(WEBP, "webp"),
    "npy header of 2^32 - 1 bytes": image(npy("{}", 2, 2**32 - 1), "npy"),
    "npy header of 9,000 brackets": image(npy("(" * 9_000), "npy"),
    "npy of 2^40 pixels": image(
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1048576, 1048576)}\n"), "npy"
    ),
    "npy of pickled objects": image(
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (8, 8)}\n") + b"cos\n", "npy"
    ),
}


def explode(name: str) -> Cost:
    """Check a bomb in this process."""
    from udl_dist.data.checking.check import check
    from udl_dist.data.settings import CheckSettings

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "good.tar").write_bytes(members({"a.png": png(8, 8)}))
        check(folder, CheckSettings(decode=True, threads=1))  # whatever is imported late
        subprocess.run(
            [sys.executable, "-m", "tests.bench.bombs", "--write", name, folder], check=True
        )
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        found = check(f"{folder}/bomb.tar", CheckSettings(decode=True, threads=1))
        seconds = time.monotonic() - began
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return Cost(found.damage[0].what if found.damage else "", peak, seconds)


def explode_apart(name: str) -> Cost:
    """Check a bomb in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.bombs", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return (
        Cost(*json.loads(done.stdout))
        if done.returncode == 0
        else Cost("", float("inf"), float("inf"))
    )


def main() -> None:
    if sys.argv[1] == "--write":
        (Path(sys.argv[3]) / "bomb.tar").write_bytes(BOMBS[sys.argv[2]]())
    else:
        print(json.dumps(explode(sys.argv[1])))


if __name__ == "__main__":
    main()
