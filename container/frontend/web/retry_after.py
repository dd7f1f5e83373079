"""The Retry-After of refused requests: when a place is free at the server's pace, and spread.

If all refused clients came back at once, most would be refused again. So the time of each is drawn
from those at which the places for all of them become free.
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

# Refusals of so many seconds are of clients that will come back.
WINDOW_S = 10.0
MAX_REFUSALS = 10_000
LONGEST_S = 60
# How long a request takes, while none has ended yet.
UNKNOWN_S = 1.0


class RetrySchedule:
    """Spreads refused clients over the times at which places become free."""

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` returns a number from 0 to 1."""
        self._now = now
        self._draw = draw
        self._refused_at: deque[float] = deque(maxlen=MAX_REFUSALS)

    def refuse(self, num_running: int, mean_s: float | None) -> int:
        """Note a refusal; return in how many seconds, at least 1, its client should come back.

        `mean_s` is how long a request has taken of late.
        """
        now = self._now()
        self._refused_at.append(now)
        while self._refused_at[0] < now - WINDOW_S:
            self._refused_at.popleft()
        between_places_s = (UNKNOWN_S if mean_s is None else mean_s) / max(1, num_running)
        place = self._draw() * len(self._refused_at)
        return min(LONGEST_S, max(1, math.ceil(place * between_places_s)))


def add_retry_after(app: Flask, service: Service, metrics: Metrics) -> None:
    """Put the header on every refusal of an app that is overloaded."""
    schedule = RetrySchedule()

    @app.after_request
    def add(response: Response) -> Response:
        if isinstance(response, ErrorResponse) and isinstance(response.error, Overloaded):
            retry_s = schedule.refuse(_load(service).running, metrics.mean_duration_s)
            response.headers["Retry-After"] = str(retry_s)
        return response


def _load(service: Service) -> EngineLoad:
    try:
        return service.status.load
    except ServingError:  # there is no engine, or it has just left
        return EngineLoad()
