"""What a run was trained in: releases, processors, workers. Kept at each start in which it is
another one.

No name of a machine or a person and no path is in it, so that it may stand in a report and in a
card.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udl_dist import __version__
from udl_dist.core import files
from udl_dist.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from udl_dist.training.distributed import Ranks

PACKAGES = ("torch", "ray", "numpy", "webdataset", "safetensors")
LONGEST = 200  # letters of a value that are shown


def releases() -> dict[str, str]:
    """Of this package, Python and what it stands on."""
    found = {"udl-dist": __version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"system": f"{platform.system()} {platform.machine()}"}


def here(ranks: Ranks, arithmetic: Mapping[str, str]) -> dict[str, Any]:
    """What this rank sees of it; the machines of other ranks are taken to be like its own.

    `arithmetic` is what was set for repeatable bits and for precision.
    """
    import torch

    found = {
        **releases(),
        "workers": ranks.world,
        "backend": ranks.backend or "none",
        "device": ranks.device.type,
        "threads of a worker": torch.get_num_threads(),
        "CPU": _cpu(),
    }
    if ranks.device.type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(ranks.device)
        found["CUDA"] = str(torch.version.cuda or torch.version.hip)
    return {**found, **arithmetic}


def keep(folder: RunFolder, ranks: Ranks, arithmetic: Mapping[str, str], images: int) -> None:
    """Keep what the run goes on in after `images`, and say what is another than before."""
    before, now = kept(folder.environment), here(ranks, arithmetic)
    last = before[-1] if before else {}
    if all(last.get(name) == value for name, value in now.items()):
        return
    try:
        files.append_lasting(
            folder.environment, json.dumps({"images": images, **now}, ensure_ascii=False)
        )
    except OSError as error:
        folder.say(f"ALARM: the environment is not recorded: {error.strerror}; training goes on")
    changed = [
        f"{name} {now.get(name, 'absent')}, was {last.get(name, 'absent')}"
        for name in dict.fromkeys([*now, *last])
        if name != "images" and now.get(name) != last.get(name)
    ]
    if before:
        folder.say(f"goes on after {images} images in another environment: {'; '.join(changed)}")


def kept(path: Path) -> list[dict[str, Any]]:
    """The environments of a run in their order; lines that are none are left out."""
    found = []
    for line in files.whole_lines(path):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("images"), int):
            found.append(entry)
    return found


def in_words(entry: Mapping[str, Any]) -> str:
    """One environment in a line; what stands in it is as strange as the file it came from."""
    return ", ".join(
        f"{str(name)[:LONGEST]} {str(value)[:LONGEST]}"
        for name, value in entry.items()
        if name != "images"
    )


def _cpu() -> str:
    """The name of the processor; "unknown" where the system does not tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()
