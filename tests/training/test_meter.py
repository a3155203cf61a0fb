"""What a run says of its speed, time to go and memory, and when."""

from udl_dist.training.meter import Pace


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
