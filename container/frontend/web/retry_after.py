"""The Retry-After of refused requests: spread over the time that serving them takes.

If all refused clients came back at once, most would be refused again. So each gets a random time
before the one at which the server has had capacity for all.
"""

import math
import random
import time
from collections import deque
from collections.abc import Callable

from flask import Flask, Response

from container.errors import Overloaded, ServingError
from container.frontend.generation.service import Service
from container.frontend.observability.metrics import Metrics
from container.frontend.web.error_responses import ErrorResponse
from container.messages.engine import EngineLoad

# Clients that were refused within this time are expected to come back.
WINDOW_S = 10.0
MAX_REFUSALS = 10_000
LONGEST_S = 60
# The assumed duration of a request before one has ended.
UNKNOWN_S = 1.0


class RetrySchedule:
    """Spreads refused clients over the time that serving them takes."""

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        random_fraction: Callable[[], float] = random.random,
    ) -> None:
        """`random_fraction` returns a random number from 0 to 1."""
        self._now = now
        self._random_fraction = random_fraction
        self._refused_at: deque[float] = deque(maxlen=MAX_REFUSALS)

    def refuse(self, num_running: int, mean_s: float | None) -> int:
        """Record a refusal; return after how many seconds, at least 1, its client should retry.

        `mean_s` is the recent mean duration of a request.
        """
        now = self._now()
        self._refused_at.append(now)
        while self._refused_at[0] < now - WINDOW_S:
            self._refused_at.popleft()
        interval_s = (UNKNOWN_S if mean_s is None else mean_s) / max(1, num_running)
        position = self._random_fraction() * len(self._refused_at)
        return min(LONGEST_S, max(1, math.ceil(position * interval_s)))


class RetryAfter:
    """The header's value for each refusal of this process, from the engine's load and pace."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics
        self._schedule = RetrySchedule()

    def seconds(self) -> int:
        """Record a refusal; return after how many seconds its client should retry."""
        return self._schedule.refuse(_load(self._service).running, self._metrics.mean_duration_s)


def add_retry_after(app: Flask, retry_after: RetryAfter) -> None:
    """Put the header on every refusal of an app that is overloaded."""

    @app.after_request
    def add(response: Response) -> Response:
        if isinstance(response, ErrorResponse) and isinstance(response.error, Overloaded):
            response.headers["Retry-After"] = str(retry_after.seconds())
        return response


def _load(service: Service) -> EngineLoad:
    try:
        return service.status.load
    except ServingError:  # there is no engine, or it has just left
        return EngineLoad()
