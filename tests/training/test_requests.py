"""Requests of rank 0 are heard by all after the same step, by few messages."""

import time

from tests.training import gloo
from udl_dist.launch.report_handler import now_and_then
from udl_dist.training.distributed import Ranks
from udl_dist.training.requests import STEPS, Requests


def heard(step_seconds: float, steps: int, asked_at: int) -> tuple[list[int], int]:
    """The steps after which a stop was heard, and how often this rank was asked."""
    ranks, number, calls = Ranks(), 0, 0

    def ask() -> tuple[bool, bool]:
        nonlocal calls
        calls += 1
        return ranks.is_main and number >= asked_at, False

    requests, found = Requests(ask, ranks), []
    for number in range(steps):  # `ask` reads it
        time.sleep(step_seconds)
        if requests.heard()[0]:
            found.append(number)
    ranks.await_announced()
    return found, calls


def test_quick_steps_send_few_messages_and_every_rank_hears_at_the_same_step() -> None:
    (first, calls), *others = gloo.run(3, heard, 0.001, 200, 100)
    assert all(found == first for found, _ in others)
    assert calls <= 200 / STEPS + 4
    assert 100 <= first[0] <= 100 + 2 * STEPS


def test_slow_steps_are_asked_one_by_one() -> None:
    found, calls = gloo.run(2, heard, 0.51, 5, 2)[1]
    assert (found[0], calls) == (3, 5)


def test_a_lone_rank_hears_at_once() -> None:
    assert heard(0.0, 10, 4) == ([*range(4, 10)], 10)


def test_the_disk_is_looked_at_twice_a_second() -> None:
    calls, answers, began = 0, 0, time.monotonic()

    def ask() -> bool:
        nonlocal calls
        calls += 1
        return True

    asked = now_and_then(ask)
    while calls < 3:
        answers += asked()
    assert answers == 3
    assert time.monotonic() - began >= 1
