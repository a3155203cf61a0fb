"""What a run says of its speed, time to go and memory, and when."""

import time
from types import SimpleNamespace

import pytest

from tests.training import gloo
from udl_dist.launch.notices import Pace, Straggler
from udl_dist.training import meter
from udl_dist.training.distributed import Ranks


def point(speed: float, mebibytes: int) -> dict[str, float]:
    return {"perf/images_per_second": speed, "perf/memory_bytes": mebibytes * 2.0**20}


def test_the_speed_is_the_latest_and_the_memory_the_most_so_far() -> None:
    pace = Pace(0, 10, 10_000)
    assert pace.add(1_990, point(50, 700)) == ""
    said = pace.add(2_000, point(2, 300))
    assert said == "after 2,000 images: 2 images/s, 1:06:40 to go, peak memory of a worker 700 MiB"
    assert pace.add(3_000, point(2, 800)) == ""


def test_a_resumed_run_says_it_after_200_steps_of_its_own() -> None:
    pace = Pace(5_000, 10, 10_000)
    assert pace.add(6_990, point(10, 1)) == ""
    assert pace.add(7_000, point(10, 1)).startswith(
        "after 7,000 images: 10 images/s, 0:05:00 to go"
    )


def test_a_run_that_is_over_says_no_time_to_go() -> None:
    assert Pace(0, 10, 2_000).add(2_000, point(10, 1)) == ""


def test_speed_and_the_share_of_data_wait_are_those_of_the_seconds_since_the_last_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = iter([0.0, 10.0])
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    measured = meter.Meter(Ranks(), images=100)
    measured.add_wait(2.0, damaged=1)
    measured.add_wait(0.5, damaged=2)
    metrics = measured.metrics(150, learning_rate=0.1)
    assert metrics.pop("perf/memory_bytes") > 2**20
    assert metrics == {
        "train/learning_rate": 0.1,
        "perf/images_per_second": 5.0,
        "perf/data_wait_seconds": 2.5,
        "perf/data_wait_share": 0.25,
        "data/damaged": 3.0,
    }


def test_every_rank_reports_which_is_the_slowest_and_by_how_much() -> None:
    points = gloo.run(3, spread_with_a_slow_rank)
    assert points[0] == points[1] == points[2]
    rank, share = points[0]
    assert rank == 2.0 and share > 5


def spread_with_a_slow_rank() -> tuple[float, float]:
    ranks = Ranks()
    measured = meter.Meter(ranks, images=0)
    for _ in range(3):
        with measured.forward.running():
            time.sleep(0.05 if ranks.rank == 2 else 0.002)
    metrics = measured.metrics(30, learning_rate=0.1)
    return metrics["perf/slowest_rank"], metrics["perf/slowest_rank_share"]


def test_a_rank_that_stays_behind_is_named_once() -> None:
    straggler = Straggler()
    behind = {"perf/slowest_rank": 5.0, "perf/slowest_rank_share": 1.8}
    even = {"perf/slowest_rank": 1.0, "perf/slowest_rank_share": 1.1}
    lines = [straggler.add(point) for point in (behind, behind, even, behind, behind, behind)]
    assert lines[:5] == [""] * 5
    assert lines[5].startswith("rank 5 holds up the others: it computes 1.8 times as long")
    assert straggler.add(behind) == "" and straggler.add({}) == ""
