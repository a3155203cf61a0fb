"""Where a rank cuts its rows: all ranks together cut the batch where virtual ranks end."""

from types import SimpleNamespace
from typing import Any

import pytest

from udl_dist.training.step import part_edges


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_the_edges_of_all_ranks_are_those_of_the_virtual_ranks(world: int) -> None:
    batch_size, found = 31, [0]
    for rank in range(world):
        ranks: Any = SimpleNamespace(rank=rank, world=world)
        edges = part_edges(batch_size, 12, 1, ranks)
        assert edges[0] == 0
        found += [found[-1] + edge for edge in edges[1:]]
    assert found == [31 * part // 12 for part in range(13)]


def test_accumulated_parts_differ_by_one_row_at_most() -> None:
    ranks: Any = SimpleNamespace(rank=1, world=2)  # rows 10 to 21 of 21
    assert part_edges(21, 0, 4, ranks) == [0, 2, 5, 8, 11]
