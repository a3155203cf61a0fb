"""python -m tests.bench.object_storage: our ranged reads against obstore's own, on a server that
speaks S3.

moto on loopback, in its own process. 128 ranged GETs of 1 MiB from 8 threads, and 512 of 100 KB,
our Object.read against a bare loop over `get_range`; the two take turns, and the median ratio of
neighbouring turns is printed (goal: 0.9). Then bytes read ÷ bytes needed of shuffled and of
straight epochs over photo-sized and tiny records (goal: 1.1).
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from udl_dist.data.loader import order
from udl_dist.storage.objects import Object, upload
from udl_dist.storage.ranges import Range, read_ranges

THREADS, TURNS, BATCH = 8, 7, 64
SHARD_BYTES = (
    2**24
)  # moto copies the whole object for each range of it: a large one would measure that
URI = "s3://bucket/shard.tar"
SERVER = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("http://%s:%s" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


def bare(address: str) -> Callable[[int, int], Any]:
    """Ranges as a person reads them with obstore, who keeps the bytes."""
    from obstore.store import S3Store

    store = S3Store("bucket", endpoint=address, client_options={"allow_http": True})
    name = URI.rpartition("/")[2]
    return lambda start, length: bytes(store.get_range(name, start=start, length=length))


def seconds(read: Callable[[int], bytes], starts: list[int]) -> float:
    """One turn: all ranges by a pool of threads, as the readers of a stream do it."""
    started = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(read, starts):
            pass
    return time.perf_counter() - started


def compare(blob: Object, bare_read: Callable[[int, int], Any], length: int, count: int) -> None:
    starts: list[int] = np.random.default_rng(0).integers(0, SHARD_BYTES - length, count).tolist()
    reads: tuple[Callable[[int], bytes], ...] = (
        lambda start: blob.read(start, length),
        lambda start: bare_read(start, length),
    )
    times: list[list[float]] = []
    for turn in range(TURNS + 1):
        pair = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            pair[which] = seconds(reads[which], starts)
        times.append(pair)
    times = times[1:]  # the first turn opens connections
    ratio = statistics.median(theirs / ours for ours, theirs in times)
    rates = [
        count * length / 2**20 / statistics.median(column) for column in zip(*times, strict=True)
    ]
    print(
        f"{count} x {length:,} bytes: ours {rates[0]:.0f} MiB/s, bare {rates[1]:.0f} MiB/s, ratio"
        f" {ratio:.2f} (turns {min(b / a for a, b in times):.2f} to"
        f" {max(b / a for a, b in times):.2f})"
    )


def records(least: int, most: int) -> list[Range]:
    """Where the images of a shard lie: a header, the image, padding, and now and then a label."""
    chance, at, found = np.random.default_rng(1), 0, list[Range]()
    while at < SHARD_BYTES - most - 4096:
        length = int(chance.integers(least, most))
        found.append((at + 512, length))
        at += 512 + -(-length // 512) * 512 + 1024  # and a label: a header and a block
    return found[:2000]


def epoch(ranges: list[Range], shuffled: bool) -> str:
    """Read every record once, a batch at a time; bytes read ÷ needed and records a request."""
    blob = Object(URI)
    before, count = blob.traffic.requests, len(ranges)
    places = np.arange(count, dtype=np.int64)
    chosen = order.record_at(0, 0, places, count) if shuffled else places
    for first in range(0, count, BATCH):
        read_ranges(blob, [ranges[at] for at in chosen[first : first + BATCH]])
    traffic = blob.traffic
    requests = traffic.requests - before
    return f"{traffic.bytes_read / traffic.bytes_wanted:.3f} ({count} records, {requests} requests)"


def main() -> None:
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None and server.stdin is not None
    try:
        address = server.stdout.readline().strip()
        os.environ["AWS_ENDPOINT_URL_S3"] = address
        urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT")).close()
        with tempfile.NamedTemporaryFile() as file:
            file.write(np.random.default_rng(0).bytes(SHARD_BYTES))
            file.flush()
            upload(Path(file.name), URI)
        blob, bare_read = Object(URI), bare(address)
        compare(blob, bare_read, 2**20, 128)
        compare(blob, bare_read, 100_000, 512)
        for name, least, most in (
            ("photos of 20 to 120 KB", 20_000, 120_000),
            ("records of 200 to 400 bytes", 200, 400),
        ):
            ranges = records(least, most)
            for shuffled in (True, False):
                print(
                    f"{name}, {'shuffled' if shuffled else 'straight'}: read / needed"
                    f" {epoch(ranges, shuffled)}"
                )
    finally:
        server.stdin.close()
        server.wait()


if __name__ == "__main__":
    main()
