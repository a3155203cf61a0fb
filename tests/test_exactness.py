"""A run that was killed ends as one that was not: a part of tests.bench.kills and tests.bench.kinds, same code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import kills, kinds


def test_kills_at_random_change_neither_networks_nor_optimisers_nor_curves(tmp_path: Path) -> None:
    kills.suite(tmp_path, 6, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["SIGSTOP", "endless loop", "reader death", "ten faults"])
def test_a_kind_of_fault_changes_nothing_either(kind: str, tmp_path: Path) -> None:
    assert kinds.suite(tmp_path, [kind]) == 1
