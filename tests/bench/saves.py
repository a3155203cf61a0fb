"""python -m tests.bench.saves [N]: N (500) kills by SIGKILL inside save and prune, each with a
restart; full disks.

Goals: 500 of 500 restarts find a complete checkpoint, 0 stale files; no complete checkpoint lost on
a full disk.

A child process saves a checkpoint of three small files and prunes. It kills itself before and after
each of its calls into the system (open, write, fsync, rename, mkdir, unlink …), at one point after
the other, and is killed at random instants when all points have had their turn. Each restart
sweeps, verifies every hash, loads, saves again and looks for strays. Then the same save runs on a
tmpfs that is full after 0, 4, 8 … KiB (without rights to mount: RLIMIT_FSIZE).
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from udl_dist.errors import TrainingError
from udl_dist.training import checkpoint

FILES = {
    name: {"a": torch.randn(3, 900), "b": torch.tensor(3)}
    for name in ("networks", "average", "optimizer-0")
}
WATCHED = (
    "open",
    "write",
    "write_text",
    "fsync",
    "rename",
    "mkdir",
    "unlink",
    "rmdir",
    "serialize_file",
    "close",
)


def act(folder: Path) -> None:
    """What is cut short: the third checkpoint, whose pruning deletes the second (the first is the
    best).
    """
    checkpoint.save(folder, 300, FILES, {"figures": {"val/mse": 0.5}})
    checkpoint.prune(folder, 1, "val/mse", 300)


def prepared(folder: Path) -> Path:
    for images, figure in ((100, 0.1), (200, 0.9)):
        checkpoint.save(folder, images, FILES, {"figures": {"val/mse": figure}})
    return folder


def counted(kill_at: int, names: list[str]) -> Callable[[FrameType, str, Any], None]:
    """A profiler that kills this process at point `kill_at`, and lists the points it went by."""

    def profile(frame: FrameType, event: str, called: Any) -> None:
        if event in ("c_call", "c_return") and called.__name__ in WATCHED:
            names.append(f"{'before' if event == 'c_call' else 'after'} {called.__name__}")
            if len(names) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    return profile


def killed(folder: Path, kill_at: int, after_seconds: float = 0.0) -> bool:
    """Fork a child that acts and is killed at a point or after a time; say whether it was."""
    child = os.fork()
    if child == 0:
        if kill_at:
            sys.setprofile(counted(kill_at, []))
        act(folder)
        os._exit(0)
    if after_seconds:
        time.sleep(after_seconds)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def restarted(folder: Path) -> str:
    """What is wrong after a restart; "" if a complete checkpoint was found, taken up, and no stray
    file is left.
    """
    said: list[str] = []
    checkpoint.sweep(folder)
    try:
        found = checkpoint.newest(folder, said.append)
    except TrainingError as error:
        return str(error)
    if said or found is None or int(found.name) < 200:
        return f"passed over: {said}" if said else f"found {found}"
    if checkpoint.load(found)[0].keys() != FILES.keys():
        return "other files"
    act(folder)
    left = sorted(path.name for path in folder.iterdir())
    return "" if left == [f"{100:012d}", f"{300:012d}"] else f"stale: {left}"


def points() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        names: list[str] = []
        prepared(Path(folder))
        sys.setprofile(counted(0, names))
        act(Path(folder))
        sys.setprofile(None)
        return names


def seconds() -> float:
    """How long the act takes in a child, undisturbed."""
    with tempfile.TemporaryDirectory() as folder:
        prepared(Path(folder))
        began = time.perf_counter()
        killed(Path(folder), 0)
        return time.perf_counter() - began


def kills(number: int) -> tuple[int, list[str]]:
    """How many of `number` children were killed, and what went wrong after any of them."""
    there, wrong, died = points(), [], 0
    chance, span = random.Random(0), seconds()
    order = chance.sample(range(1, len(there) + 1), len(there))
    for turn in range(number):
        point = order[turn] if turn < len(there) else 0
        with tempfile.TemporaryDirectory() as folder:
            where = prepared(Path(folder))
            while (
                not (dead := killed(where, point, 0.0 if point else chance.uniform(0.0, span)))
                and not point
            ):
                prepared(where)  # it was through before it was to die
                span *= 0.9
            died += dead
            if trouble := restarted(where):
                wrong.append(f"{there[point - 1] if point else 'random'}: {trouble}")
    return died, wrong


@contextmanager
def full_after(free_bytes: int, where: Path) -> Iterator[bool]:
    """At `where` a tmpfs with two checkpoints and so many bytes free; False where nothing may be
    mounted.
    """
    if not mounted("size=16m", where):
        yield False
        return
    try:
        prepared(where)
        mounted(f"remount,size={shutil.disk_usage(where).used + free_bytes}", where)
        yield True
    finally:
        subprocess.run(["umount", str(where)], check=True)


def mounted(options: str, where: Path) -> bool:
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(where)]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def refused(folder: Path) -> str:
    """The error of an act on a full disk, or "" if it went through; strays and lost checkpoints are
    an assertion.
    """
    try:
        act(folder)
    except OSError as error:
        assert not list(folder.glob(".*")), "a stray file"
        for images in (100, 200):
            checkpoint.verify(checkpoint.path_of(folder, images))
        return error.strerror or str(error)
    checkpoint.verify(checkpoint.path_of(folder, 300))
    return ""


def full_disks(ask_first: bool) -> Counter[str]:
    """How saves ended on disks that are full after more and more bytes; `ask_first`: look at the
    free space first.
    """
    ends: Counter[str] = Counter()
    look = checkpoint.refuse_full
    checkpoint.refuse_full = look if ask_first else lambda folder, needed_bytes: None
    try:
        for free in range(0, 96 * 1024, 4096):
            with tempfile.TemporaryDirectory() as folder, full_after(free, Path(folder)) as is_full:
                ends[refused(Path(folder)) if is_full else limited(Path(folder), free)] += 1
    finally:
        checkpoint.refuse_full = look
    return ends


def limited(folder: Path, most: int) -> str:
    """The same where nothing may be mounted: no file may be longer than `most`."""
    where = prepared(folder / "limited")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        return refused(where)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    torch.set_num_threads(1)
    died, wrong = kills(number)
    kinds = Counter(points())
    print(
        f"{sum(kinds.values())} points:"
        f" {', '.join(f'{count} {name}' for name, count in sorted(kinds.items()))}"
    )
    print(
        f"{number} children, {died} killed before their end; {number - len(wrong)} restarts from a"
        " complete checkpoint with no stale file"
    )
    print("\n".join(wrong[:10]))
    for ask_first in (True, False):
        how = "with" if ask_first else "without"
        print(f"full disks, {how} the look at the free space: {dict(full_disks(ask_first))}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
