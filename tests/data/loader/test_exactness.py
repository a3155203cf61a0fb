"""A part of the exactness suite (tests/bench/exactness), small enough for every run."""

from pathlib import Path

import pytest

from tests.bench.exactness import MIXES, UNEVEN, damage, resizes, resumes, spoilt
from tests.data.loader.made import shards
from udl_dist.data.shards.indexing import index_shards


@pytest.mark.parametrize("order", ["full", "blocks"])
def test_resumes_resizes_and_damage_are_exact(tmp_path: Path, order: str) -> None:
    assert resumes(
        index_shards(shards(tmp_path / "epoch", [100, 1, 260, 119])), order, 2, 3, 60
    ) == (2, 0)
    uneven = [
        index_shards(shards(tmp_path / str(number), counts))
        for number, counts in enumerate(UNEVEN[:3])
    ]
    assert resizes(uneven, order, ((),), 3, 1) == (0, (0, 0, 0, 0))
    assert resizes([uneven[0], uneven[2]], order, MIXES[:2], 1, 2) == (0, (0, 0, 0, 0))
    broken = {3, 25, 26}
    assert damage(spoilt(tmp_path / "bad", [20, 1, 39], broken), order, broken, (1, 3), 30) == (
        4,
        0,
    )
