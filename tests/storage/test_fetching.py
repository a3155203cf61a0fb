"""A request comes back in bounded time: repeated if a fault may pass, made twice if it is slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.data.loader.made import one_line
from udl_dist.errors import DataError
from udl_dist.storage.fetching import REQUESTS, Fetch, Limits, PassingError, Traffic

LIMITS = Limits(request_seconds=0.5, attempts=4, total_seconds=1.0, hedge_seconds=0.1)


def after(*outcomes: str | float) -> Callable[[], str]:
    """An attempt that fails with each text in turn, or sleeps so many seconds, then answers."""
    left = list(outcomes)

    def attempt() -> str:
        outcome = left.pop(0) if left else 0.0
        if isinstance(outcome, str):
            raise PassingError(outcome)
        time.sleep(outcome)
        return "answer"

    return attempt


def test_faults_that_pass_are_counted() -> None:
    traffic = Traffic()
    assert Fetch("it", after("reset", "throttled"), LIMITS, traffic, 10).result() == "answer"
    assert (traffic.requests, traffic.retries, traffic.hedges, traffic.bytes_read) == (3, 2, 0, 10)


def test_time_is_bounded_even_where_attempts_are_not() -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match="it: storage does not answer after") as raised:
        Fetch(
            "it", after(*["reset"] * 1000), Limits(attempts=100, total_seconds=1.0), Traffic()
        ).result()
    assert time.monotonic() - started < 3.0
    one_line(raised.value, "reset")


def test_what_was_begun_long_ago_is_still_repeated() -> None:
    fetch = Fetch("it", after("reset"), Limits(total_seconds=0.3), Traffic())
    time.sleep(0.5)  # whoever walks a shard was busy with the piece before
    assert fetch.result() == "answer"


def test_other_errors_are_final() -> None:
    traffic = Traffic()

    def attempt() -> str:
        raise DataError("is missing")

    with pytest.raises(DataError, match="^is missing$"):
        Fetch("it", attempt, LIMITS, traffic).result()
    assert traffic.requests == 1


def test_what_must_not_be_done_twice_is_not_hedged() -> None:
    traffic = Traffic()
    assert Fetch("it", after(0.3), LIMITS, traffic, hedged=False).result() == "answer"
    assert (traffic.requests, traffic.hedges) == (1, 0)


def test_a_slow_usual_answer_is_no_reason_for_a_hedge() -> None:
    traffic = Traffic()
    traffic.recent.extend([0.2] * 9)  # so 0.8 s, four times the median, are waited for
    assert Fetch("it", after(0.3), LIMITS, traffic).result() == "answer"
    assert traffic.hedges == 0


def test_hung_requests_in_every_thread_do_not_hang_the_next() -> None:
    release = threading.Event()
    hung = [Fetch("hung", lambda: release.wait(5.0), LIMITS, Traffic()) for _ in range(REQUESTS)]
    try:
        started = time.monotonic()
        assert Fetch("it", after(), LIMITS, Traffic()).result() == "answer"
        assert time.monotonic() - started < 2.0
    finally:
        release.set()
        for fetch in hung:
            fetch.result()


def test_threads_bear_a_name() -> None:
    name = Fetch("it", lambda: threading.current_thread().name, LIMITS, Traffic()).result()
    assert name.startswith("udl-storage-request")
