"""What a run was trained in: releases, processors, workers; recorded at each start that differs.

Without names of machines or persons and without paths, so that reports and model cards can show it.
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

# Those whose release may change a bit of the result, or what is stored.
PACKAGES = ("torch", "ray", "numpy", "webdataset", "safetensors")
MAX_SHOWN = 200  # characters of a value
MOST_LISTED = 20  # on a page or a card: the last ones


def releases() -> dict[str, str]:
    """The releases of this package, of Python and of what matters for the bits."""
    found = {"udl-dist": __version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"system": f"{platform.system()} {platform.machine()}"}


def here(ranks: Ranks, arithmetic: Mapping[str, str]) -> dict[str, Any]:
    """The environment of this rank; the other ranks are assumed to have the same.

    `arithmetic` is what `training.arithmetic.set_up` returned.
    """
    # Here, as reports read environments without it, and its import takes 1.5 s.
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
    """Record the environment after `images`, and report what differs from the last one."""
    # Only a change is written: a run that is killed often has one line for each environment.
    before, now = recorded(folder.environment), here(ranks, arithmetic)
    last = before[-1] if before else {}
    changed = [
        f"{name} {now.get(name, 'absent')}, was {last.get(name, 'absent')}"
        # In the order of now, and behind it what has gone.
        for name in dict.fromkeys([*now, *last])
        if name != "images" and now.get(name) != last.get(name)
    ]
    if not changed:
        return
    try:
        files.append_lasting(
            folder.environment, json.dumps({"images": images, **now}, ensure_ascii=False)
        )
    except OSError as error:
        folder.say(f"ALARM: the environment is not recorded: {error.strerror}; training goes on")
    if before:
        folder.say(f"resumes after {images} images in another environment: {'; '.join(changed)}")


def recorded(path: Path) -> list[dict[str, Any]]:
    """The environments of a run in order; damaged lines are skipped."""
    found = []
    for line in files.whole_lines(path):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # reports show folders from anywhere
            continue
        if isinstance(entry, dict) and isinstance(entry.get("images"), int):
            found.append(entry)
    return found


def in_words(entry: Mapping[str, Any]) -> str:
    """One environment in a line; values are cut, because the file may be anything."""
    return ", ".join(
        f"{str(name)[:MAX_SHOWN]} {str(value)[:MAX_SHOWN]}"
        for name, value in entry.items()
        if name != "images"
    )


def _cpu() -> str:
    """The name of the processor, or "unknown"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"  # not first: on Linux it is usually empty
    # ARM has no "model name" there.
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()
