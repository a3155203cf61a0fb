"""What a run says of its speed, time to go and memory, and when."""

from types import SimpleNamespace

import pytest

from udl_dist.launch.notices import Pace
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
