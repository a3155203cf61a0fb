"""python -m tests.bench.disk [--every 1]: a disk that fails at the n-th write call of a run, for
every n.

Goals: 0 complete checkpoints lost, 0 tracebacks, the run goes on with an alarm or ends by name, and
a rerun on a disk that is well ends with the same sha256 (networks, averages, optimisers, curves) as
a run that was never disturbed.

A rank of 40 steps with four checkpoints runs in a process of its own. At its n-th call into the
system that has to do with files, the disk breaks under it: `full` and `full a while` are a real
tmpfs that is filled up to the last page (and emptied again a hundred calls later); `ENOSPC`, `EIO`
and `EROFS` are a seccomp filter, by which the kernel itself refuses every further open for writing,
write, fsync, mkdir, rename … of the process.
"""

import argparse
import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from tests.bench import relaunch, saves
from tests.training.gloo import context
from tests.training.learn import packed
from udl_dist import experiment as experiments
from udl_dist.errors import TrainingError
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import checkpoint

FLAGS = {
    "train__total_images": "480",
    "train__report_images": "48",
    "evaluate__every_images": "120",
    "train__average_half_life": "100",
    "evaluate__pictures": "true",
}
CALLS = (
    "open",
    "write",
    "fsync",
    "replace",
    "rename",
    "mkdir",
    "unlink",
    "rmdir",
    "serialize_file",
    "close",
    "flush",
    "__exit__",
    "ftruncate",
    "truncate",
    "utime",
    "encode_to_file",
    "encode_to_pyfd",
)
FILTERED, FULL = ("ENOSPC", "EIO", "EROFS"), ("full", "full a while")
WHILE = 100  # calls
ENDED_BY_NAME, FAULT = 4, "the disk breaks with"

# System calls of x86_64: those that change a disk, those that a full one still takes, and open's
# flags.
REFUSED = (82, 83, 85, 88, 86, 258, 264, 316, 265, 266)
ALSO_WHEN_BROKEN = (74, 75, 76, 77, 84, 87, 263, 280, 26)
WRITES, OPENS, FOR_WRITING = (
    (1, 18, 20, 296),
    {257: 2, 2: 1},
    os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC,
)


class Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("yes", ctypes.c_ubyte),
        ("no", ctypes.c_ubyte),
        ("k", ctypes.c_uint32),
    )


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction)))


def refuse_writes(code: str) -> None:
    """From here on the kernel answers every call of this process that changes a file with an error;
    not stderr's.
    """
    refuse, allow, load = (
        (0x06, 0, 0, 0x00050000 | getattr(errno, code)),
        (0x06, 0, 0, 0x7FFF0000),
        0x20,
    )
    program = [(load, 0, 0, 0)]
    for call in REFUSED + (() if code == "ENOSPC" else ALSO_WHEN_BROKEN):
        program += [(0x15, 0, 1, call), refuse]
    for call in WRITES:
        program += [(0x15, 0, 4, call), (load, 0, 0, 16), (0x25, 0, 1, 2), refuse, allow]
    for call, place in OPENS.items():
        program += [
            (0x15, 0, 4, call),
            (load, 0, 0, 16 + 8 * place),
            (0x45, 0, 1, FOR_WRITING),
            refuse,
            allow,
        ]
    listed = (Instruction * (len(program) + 1))(*(Instruction(*line) for line in [*program, allow]))
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(38, 1, 0, 0, 0)  # no new privileges: what lets anybody filter
    if library.syscall(317, 1, 1, ctypes.byref(Program(len(listed), listed))):  # of all threads
        raise OSError(ctypes.get_errno(), "seccomp")


def fill(folder: Path) -> None:
    """Take the last page of the disk."""
    with contextlib.suppress(OSError), (folder.parent / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(1 << 14)):
            pass
    with contextlib.suppress(OSError), (folder.parent / "crumbs").open("wb", buffering=0) as file:
        while file.write(bytes(1 << 12)):
            pass


def clear(folder: Path) -> None:
    for name in ("ballast", "crumbs"):
        (folder.parent / name).unlink(missing_ok=True)


def may_write(frame: FrameType, called: Any) -> bool:
    """Whether a call is one of `os` or of a file that is open for writing; not a lock's, not a
    text's `replace`.
    """
    if called.__name__ == "open":
        reads = (
            str(frame.f_locals.get("mode", "w")).strip("bt") == "r"
            or frame.f_locals.get("flags") == os.O_RDONLY
        )
        return not reads
    owner = called.__self__
    return (
        owner is None
        or isinstance(owner, ModuleType)
        or (hasattr(owner, "writable") and not owner.closed and bool(owner.writable()))
        or called.__name__ == "flush"
    )


def broken(at: int, how: str, folder: Path) -> Callable[[FrameType, str, Any], None]:
    """A profiler that breaks the disk at call number `at`, and tells stderr which checkpoints are
    there then.
    """
    counted = 0

    def profile(frame: FrameType, event: str, called: Any) -> None:
        nonlocal counted
        if event != "c_call" or called.__name__ not in CALLS or not may_write(frame, called):
            return
        counted += 1
        if counted == at:
            there = [path.name for path in checkpoint.complete(folder / "checkpoints")]
            os.write(2, f"{FAULT} {how} at {called.__name__}: {' '.join(there)}\n".encode())
            fill(folder) if how in FULL else refuse_writes(how)
        elif counted == at + WHILE and how == "full a while":
            clear(folder)

    return profile


def ranked(values: dict[str, Any], at: int, how: str, said: str) -> None:
    """One start of a run, in a process of its own: exit code 0, or 4 if it ended by name."""
    import torch

    from udl_dist.data.packing.prepare import prepare
    from udl_dist.launch.worker import work
    from udl_dist.training.distributed import Ranks

    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    torch.set_num_threads(1)
    experiment = experiments.from_dict(values)
    prepared, profile = prepare(experiment.data), broken(at, how, Path(experiment.run.folder))
    code = 0
    if at:
        threading.setprofile(profile)
        sys.setprofile(profile)
    try:
        work(experiment, prepared, Ranks())
    except TrainingError as error:
        code = ENDED_BY_NAME
        os.write(2, f"udl: {error}\n".encode())
    except BaseException:
        code = 1
        os.write(2, traceback.format_exc().encode())
    os._exit(code)


class Suite:
    """A run that is well, and the same run on disks that are not."""

    def __init__(self, folder: Path, place: Path, method: str = "vae") -> None:
        self.run, self.said = place / "run", folder / "stderr.txt"
        source = packed(folder / "data")
        self.experiment = relaunch.wanted(method, source, self.run, **FLAGS)
        whole = relaunch.wanted(method, source, folder / "whole", **FLAGS)
        relaunch.run(whole)
        self.whole = relaunch.fingerprint(folder / "whole")

    def once(self, at: int, how: str) -> tuple[str, str]:
        """How a run ended whose disk broke at call `at` ("" if it ended before), and what was wrong
        with that.
        """
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir()
        arguments = (self.experiment.to_dict(), at, how, str(self.said))
        process = context.Process(target=ranked, args=arguments)
        process.start()
        process.join(60)
        code = process.exitcode
        process.kill()
        clear(self.run)
        said = self.said.read_text()
        if FAULT not in said:
            return "", "" if relaunch.fingerprint(
                self.run
            ) == self.whole else "no fault, and other bits"
        ended = (
            "ended by name"
            if code == ENDED_BY_NAME
            else "went on with an alarm"
            if "ALARM" in self._told()
            else ("went on, nothing was written any more" if code == 0 else "died")
        )
        return ended, self._wrong(code, said) or self._again()

    def _told(self) -> str:
        messages = RunFolder(self.run).messages
        return self.said.read_text() + (messages.read_text() if messages.exists() else "")

    def _wrong(self, code: int | None, said: str) -> str:
        if code not in (0, ENDED_BY_NAME) or "Traceback" in said:
            return f"exit code {code}: {said[-1500:]}"
        there = (
            next(line for line in said.splitlines() if line.startswith(FAULT))
            .split(": ")[1]
            .split()
        )
        before = sorted(
            int(name)
            for name in there
            if checkpoint.path_of(self.run / "checkpoints", int(name)).exists()
        )
        passed: list[str] = []
        found = checkpoint.newest(self.run / "checkpoints", passed.append)
        newest = int(found.name) if found else 0
        if passed or newest < max((int(name) for name in there), default=0):
            return f"checkpoints were {there}, are {before}, newest whole {newest}, {passed}"
        return "" if code or newest == 480 else f"ended well with {newest} images"

    def _again(self) -> str:
        """The same run on a disk that is well."""
        relaunch.run(self.experiment)
        left = [str(path) for path in self.run.rglob(".writing*")]
        if relaunch.fingerprint(self.run) != self.whole:
            return "the rerun has other bits"
        return f"left behind: {left}" if left else ""

    def calls(
        self, how: str, every: int, first: int = 1, most: int = 10**9
    ) -> tuple[Counter[str], list[str]]:
        """Break the disk at every so many calls; how the runs ended, and all that was wrong."""
        ends, wrong = Counter[str](), list[str]()
        for at in range(first, most, every):
            ended, why = self.once(at, how)
            if why:
                wrong.append(f"{how} at call {at}: {why}")
            if not ended:
                break
            ends[ended] += 1
        return ends, wrong


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs of 8 MiB at `folder`; False where nothing may be mounted."""
    folder.mkdir()
    mounted = saves.mounted("size=8m", folder)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth call")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--only", default="", help="one kind")
    asked = parser.parse_args()
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder) / "disk") as mounted:
        suite = Suite(Path(folder), Path(folder) / "disk")
        for how in (*(FULL if mounted else ()), *FILTERED):
            if asked.only in ("", how):
                ends, wrong = suite.calls(how, asked.every, asked.first)
                print(f"{how}: {ends.total()} runs: {dict(ends)}; {len(wrong)} wrong", flush=True)
                print("\n".join(wrong[:5]), flush=True)
                bad += wrong
    assert not bad


if __name__ == "__main__":
    main()
