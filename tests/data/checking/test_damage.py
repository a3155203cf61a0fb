"""A part of the damage and fuzz suites (tests/bench/damage, tests/bench/fuzz), small enough for
every run.
"""

from pathlib import Path

import pytest

from tests.bench.bombs import BOMBS, MEGABYTES, explode_apart
from tests.bench.damage import payload_flips
from tests.bench.fuzz import run_cases
from tests.bench.wounds import KINDS, base, inflict


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_shards_are_noticed_named_and_accounted_for(tmp_path: Path, kind: str) -> None:
    whole = base(tmp_path / "whole")
    for seed in range(12):
        assert inflict(whole, kind, tmp_path / "wounded", seed) == (True, True, True), (kind, seed)


def test_no_flipped_bit_of_a_payload_is_read(tmp_path: Path) -> None:
    assert payload_flips(base(tmp_path / "whole"), 500, seed=1) == 0


@pytest.mark.parametrize(
    "name", ["GNU sparse member of 1 GiB", "PNG of 179 megapixels", "npy header of 9,000 brackets"]
)
def test_bombs_are_refused_at_the_cost_of_their_headers(name: str) -> None:
    assert name in BOMBS
    cost = explode_apart(name)
    assert cost.said
    assert cost.megabytes < MEGABYTES


def test_mutated_shards_bring_out_refusals_alone() -> None:
    counts = run_cases(seed=1, first=0, count=150)
    assert counts["cases"] == 150
    assert not {"foreign", "unprintable"} & set(counts)
    assert counts["refused"] > 30
    assert counts["accepted"] > 30
