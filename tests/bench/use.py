"""python -m tests.bench.use: seconds of `udl_dist.load` besides importing torch (goal 1.5); `embed`
in bounded memory.

The embedding is of 50,000 and a million images of 8 px, each in a process of its own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.trained import run
from tests.training.learn import packed
from udl_dist.data.packing.pack import pack
from udl_dist.data.settings import PackSettings

TURNS = 5
LOAD = """
import time, torch
began = time.perf_counter()
import sys, udl_dist
udl_dist.load(sys.argv[1])
print(time.perf_counter() - began)
"""
EMBED = """
import sys
from pathlib import Path
import udl_dist
from udl_dist.inference.embedding import embed
from udl_dist.inference.settings import EmbedSettings
own = [0]
# memory of its own: pages of the shards that the system keeps are not counted
def look(done, total):
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    own.append(int(fields["RssAnon"].split()[0]) / 1024)
model = udl_dist.load(sys.argv[1])
asked = EmbedSettings(part_images=16384)
done = embed(model, sys.argv[2], Path(sys.argv[3]), asked, look).as_dict()
print(done["records"], done["seconds"], max(own))
"""


def said(code: str, *arguments: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
    )
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = str(run("vae", packed(folder / "data"), folder / "vae"))
        times = [said(LOAD, model)[0] for _ in range(TURNS + 1)][1:]
        print(
            f"udl_dist.load besides importing torch: median {statistics.median(times):.2f} s, most"
            f" {max(times):.2f}"
        )
        for records in (50_000, 1_000_000):
            np.save(
                folder / "many.npy",
                np.random.default_rng(0).integers(0, 256, (records, 8, 8), dtype=np.uint8),
            )
            shards = folder / f"shards-{records}"
            pack(str(folder / "many.npy"), str(shards), PackSettings(size=8, format="raw"))
            count, seconds, peak = said(
                EMBED, model, str(shards / "train"), str(folder / f"out-{records}")
            )
            print(
                f"embed {count:,.0f} images: {count / seconds:,.0f} images/s, own memory"
                f" {peak:,.0f} MiB at most"
            )


if __name__ == "__main__":
    main()
