"""When refused clients should come back: at the pace of the server, and not all at once."""

import random

import pytest

from container.frontend.web.retry_after import LONGEST_S, WINDOW_S, RetrySchedule


@pytest.mark.parametrize(
    ("num_running", "mean_s", "least", "most"),
    [(1, 10.0, 10, 10), (2, 10.0, 5, 5), (64, 10.0, 1, 1), (0, None, 1, 1), (1, 900.0, 60, 60)],
)
def test_retry_after_is_the_time_until_a_free_slot(
    num_running: int, mean_s: float | None, least: int, most: int
) -> None:
    schedule = RetrySchedule(now=lambda: 0.0, random_fraction=lambda: 1.0)
    assert least <= schedule.refuse(num_running, mean_s) <= most


def test_retry_after_spreads_many_clients() -> None:
    clock = [0.0]
    schedule = RetrySchedule(now=lambda: clock[0], random_fraction=random.Random(1).random)
    first = [schedule.refuse(10, 5.0) for _ in range(40)]  # a place every half second
    assert max(first) > 10
    assert len(set(first)) > 8
    more = [schedule.refuse(10, 5.0) for _ in range(400)]
    assert max(more) == LONGEST_S
    clock[0] = WINDOW_S + 1
    assert schedule.refuse(10, 5.0) == 1  # those before have come back or given up
