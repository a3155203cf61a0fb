"""A slow request is made a second time, and the first good answer counts."""

import threading
import time
from collections.abc import Callable

import pytest

from udl_dist.errors import DataError
from udl_dist.storage.transfers import REQUESTS, UNIT, Limits, Pending, Traffic

LIMITS = Limits(hedge_seconds=0.1)


def after(*outcomes: str | float) -> Callable[[], str]:
    """An attempt that fails with each text, or sleeps for each number of seconds, then answers."""
    left = list(outcomes)

    def attempt() -> str:
        outcome = left.pop(0) if left else 0.0
        if isinstance(outcome, str):
            raise DataError(outcome)
        time.sleep(outcome)
        return "answer"

    return attempt


def test_an_answer_is_counted() -> None:
    traffic = Traffic()
    assert Pending(after(), LIMITS, traffic, 10).result() == "answer"
    assert (traffic.requests, traffic.hedges, traffic.bytes_read) == (1, 0, 10)


def test_a_slow_request_is_made_again_and_either_may_answer() -> None:
    traffic = Traffic()
    began = time.monotonic()
    assert Pending(after(5.0), LIMITS, traffic).result() == "answer"
    assert time.monotonic() - began < 2.0
    assert (traffic.requests, traffic.hedges) == (2, 1)
    assert Pending(after(0.3, "a hedge that fails"), LIMITS, traffic).result() == "answer"


def test_what_fails_is_not_made_again() -> None:
    traffic = Traffic()
    with pytest.raises(DataError, match="^is missing$"):
        Pending(after("is missing"), LIMITS, traffic).result()
    assert traffic.requests == 1


def test_what_must_not_be_done_twice_is_not_hedged() -> None:
    traffic = Traffic()
    assert Pending(after(0.3), LIMITS, traffic, hedged=False).result() == "answer"
    assert Pending(after(0.3), Limits(hedge_seconds=0.0), traffic).result() == "answer"
    assert (traffic.requests, traffic.hedges) == (2, 0)


def test_a_slow_usual_answer_is_no_reason_for_a_hedge() -> None:
    traffic = Traffic()
    traffic.recent.extend([0.2] * 9)  # so 0.8 s, four times the median, are waited for
    assert Pending(after(0.3), LIMITS, traffic).result() == "answer"
    assert traffic.hedges == 0


def test_what_is_slow_grows_with_the_size_and_with_the_usual_speed() -> None:
    traffic = Traffic()
    assert traffic.slow_seconds(LIMITS, 10) == LIMITS.hedge_seconds
    traffic.timed(4 * UNIT, 2.0)
    assert traffic.bytes_read == 4 * UNIT
    assert traffic.slow_seconds(LIMITS, UNIT) == 4 * 0.5
    assert traffic.slow_seconds(LIMITS, 3 * UNIT) == 3 * 4 * 0.5


def test_hung_requests_in_every_thread_do_not_hang_the_next() -> None:
    release = threading.Event()
    hung = [Pending(lambda: release.wait(8.0), LIMITS, Traffic()) for _ in range(REQUESTS)]
    try:
        began = time.monotonic()
        assert Pending(after(), LIMITS, Traffic()).result() == "answer"
        assert time.monotonic() - began < 4.0
    finally:
        release.set()
        for pending in hung:
            pending.result()


def test_threads_have_a_name() -> None:
    name = Pending(lambda: threading.current_thread().name, LIMITS, Traffic()).result()
    assert name.startswith("udl-storage")
