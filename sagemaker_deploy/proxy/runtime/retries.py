"""Retries calls: throttled ones within a budget, those without capacity until there is some.

The budget is a share of the requests, so that an endpoint in trouble does not get a multiple of its
load. Calls without capacity (scale from zero, a model that loads) take turns: one asks at a time,
and the others go on when its answer has begun.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from sagemaker_deploy.proxy.runtime.failures import CallFailed, Cause

T = TypeVar("T")
Attempt = Callable[[], Awaitable[T]]
RETRIED = (Cause.THROTTLED, Cause.UNAVAILABLE)
BUDGET_AT_START = 10.0
MOST_BUDGET = 100.0


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """Most retries of a request, their share of all requests, and waits in seconds."""

    most: int = 5
    share: float = 0.2
    first_wait_s: float = 0.5
    longest_wait_s: float = 20.0
    capacity_wait_s: float = 900.0
    capacity_poll_s: float = 3.0


class Retries:
    """Retries of the calls of one endpoint."""

    def __init__(self, settings: RetrySettings) -> None:
        self._settings = settings
        self._budget = BUDGET_AT_START
        self._turn = asyncio.Lock()
        self._num_opened = 0
        self.counts: Counter[Cause] = Counter()
        self.num_waiting = 0

    async def run(self, attempt: Attempt[T], on_retry: Callable[[], None] = lambda: None) -> T:
        """Return the result of the first attempt that succeeds. Raises the last CallFailed."""
        self._budget = min(MOST_BUDGET, self._budget + self._settings.share)
        deadline = time.monotonic() + self._settings.capacity_wait_s
        num_retries = 0
        while True:
            num_opened = self._num_opened
            try:
                return await attempt()
            except CallFailed as failure:
                if failure.cause is Cause.CAPACITY and time.monotonic() < deadline:
                    self._count(failure, on_retry)
                    await self._wait_for_capacity(failure, deadline, num_opened)
                elif self._may_retry(failure, num_retries):
                    self._count(failure, on_retry)
                    await asyncio.sleep(self._wait_s(num_retries))
                    num_retries += 1
                else:
                    raise

    def add_open(self) -> None:
        """Note that an answer has begun: there is capacity for those who wait."""
        self._num_opened += 1

    def _count(self, failure: CallFailed, on_retry: Callable[[], None]) -> None:
        self.counts[failure.cause] += 1
        on_retry()

    def _may_retry(self, failure: CallFailed, num_retries: int) -> bool:
        if failure.cause not in RETRIED or num_retries >= self._settings.most or self._budget < 1:
            return False
        self._budget -= 1
        return True

    def _wait_s(self, num_retries: int) -> float:
        longest = min(self._settings.longest_wait_s, self._settings.first_wait_s * 2**num_retries)
        return random.uniform(longest / 2, longest)

    async def _wait_for_capacity(
        self, failure: CallFailed, deadline: float, num_opened: int
    ) -> None:
        """Wait for this call's turn, and then for a while unless an answer has begun meanwhile."""
        self.num_waiting += 1
        try:
            async with asyncio.timeout(deadline - time.monotonic()), self._turn:
                if self._num_opened == num_opened:
                    await asyncio.sleep(self._settings.capacity_poll_s)
        except TimeoutError:
            raise failure from None
        finally:
            self.num_waiting -= 1
