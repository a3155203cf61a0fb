"""Small searches for tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.training.learn import asked
from udl_dist.search import config
from udl_dist.search.config import Search

AXES = {"method.latent_dim": {"choice": [2, 3, 4]}, "train.learning_rate": {"log": [1e-4, 1e-1]}}


def wanted(
    source: Path,
    folder: Path,
    axes: Mapping[str, object] | None = None,
    method: str = "ae",
    flags: dict[str, str] | None = None,
    **plain: Any,
) -> Search:
    """A search of 240 images a trial in steps of 12, with rungs at 24, 72 and 216 images."""
    quiet = {"track__mode": "off", "run__folder": str(folder), "train__report_images": "24"}
    base = asked(method, source, **(quiet | (flags or {})))
    plain = {
        "trials": 6,
        "budget_images": 240,
        "least_images": 24,
        "reduction": 3,
        "finalists": 1,
        "final_seeds": 1,
    } | plain
    return config.build(base, plain, AXES if axes is None else axes)
