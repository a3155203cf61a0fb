"""python -m tests.bench.command: seconds of `udl --help` and of a dry run, as whole processes
(goals 0.5 and 1.5).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

JOB = Path(__file__).parent.parent.parent / "jobs" / "vae_digits.toml"
RUNS = 7


def seconds(*arguments: str) -> list[float]:
    times = []
    for _ in range(RUNS + 1):  # the first one warms the caches
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "udl_dist", *arguments], check=True, capture_output=True
        )
        times.append(time.perf_counter() - started)
    return times[1:]


def main() -> None:
    for name, arguments in (
        ("--help", ["--help"]),
        ("train --dry-run", ["train", str(JOB), "--dry-run"]),
    ):
        times = seconds(*arguments)
        print(
            f"udl {name:16} median {statistics.median(times):.2f} s, least {min(times):.2f}, most"
            f" {max(times):.2f}"
        )


if __name__ == "__main__":
    main()
