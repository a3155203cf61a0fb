"""Each record once, and a run that was killed ends as one that was not: parts of the benches, same
code.
"""

from pathlib import Path

import pytest

from tests.bench import epoch, kills, kinds
from udl_dist import methods


def test_kills_at_random_change_neither_networks_nor_optimisers_nor_curves(tmp_path: Path) -> None:
    there = methods.names()
    kills.suite(tmp_path, 3, seed=1)
    assert methods.names() == there, "the plug-ins that it installs are gone"


@pytest.mark.long
@pytest.mark.parametrize("kind", ["SIGSTOP", "endless loop", "reader death", "ten faults"])
def test_a_kind_of_fault_changes_nothing_either(kind: str, tmp_path: Path) -> None:
    assert kinds.suite(tmp_path, [kind]) == 1


@pytest.mark.parametrize(
    ("order", "records", "each"), [("full", 250_000, 32), ("blocks", 30_000, 16)]
)
def test_512_ranks_load_each_record_once(
    order: str, records: int, each: int, tmp_path: Path
) -> None:
    folder = epoch.virtual(tmp_path, records, 100)
    distinct, loaded, _ = epoch.counted(folder, order, 512, 512 * each, processes=1)
    assert distinct == loaded == records
