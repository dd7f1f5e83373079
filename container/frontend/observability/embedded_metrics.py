"""Token metrics for CloudWatch, as log lines in its embedded metric format.

CloudWatch makes metrics of such lines by itself, whoever ships the log. A line has the values of
up to 100 requests, so that it costs little; it is written when it is full, and after a minute.
"""

import atexit
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping

from container.frontend.generation.running_request import RunningRequest

MAX_VALUES = 100  # of one metric in one line, by the format
FLUSH_S = 60.0
COUNT, MILLISECONDS = "Count", "Milliseconds"
UNITS = {
    "PromptTokens": COUNT,
    "CachedTokens": COUNT,
    "GeneratedTokens": COUNT,
    "QueueTime": MILLISECONDS,
    "TimeToFirstToken": MILLISECONDS,
    "TimePerToken": MILLISECONDS,
    "RequestTime": MILLISECONDS,
}


class EmbeddedMetrics:
    """Collects the values of requests that have ended, and writes them as lines. Thread-safe."""

    def __init__(
        self,
        namespace: str,
        dimensions: Mapping[str, str],
        write: Callable[[str], object] | None = None,
    ) -> None:
        self._namespace = namespace
        self._dimensions = dict(dimensions)
        self._write = write or _write
        self._values: dict[str, list[float]] = {name: [] for name in UNITS}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        atexit.register(self.flush)

    def observe(self, running: RunningRequest) -> None:
        """Add the values of a request that has ended well."""
        times = running.times
        values = {
            "PromptTokens": running.prompt_tokens,
            "CachedTokens": running.prompt.cached_tokens,
            "GeneratedTokens": running.completion_tokens,
            "QueueTime": times.queue_s * 1e3,
            "TimeToFirstToken": times.first_token_s * 1e3,
            "TimePerToken": times.per_token_s * 1e3,
            "RequestTime": times.total_s * 1e3,
        }
        with self._lock:
            for name, value in values.items():
                self._values[name].append(round(max(0.0, value), 3))
            is_full = len(self._values["RequestTime"]) >= MAX_VALUES
            if self._timer is None and not is_full:
                self._start_timer()
        if is_full:
            self.flush()

    def flush(self) -> None:
        """Write the values so far, if there are any."""
        with self._lock:
            values, self._values = self._values, {name: [] for name in UNITS}
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if values["RequestTime"]:
            self._write(json.dumps(self._line(values)))

    def _start_timer(self) -> None:
        self._timer = threading.Timer(FLUSH_S, self.flush)
        self._timer.daemon = True
        self._timer.start()

    def _line(self, values: Mapping[str, list[float]]) -> dict[str, object]:
        directive = {
            "Namespace": self._namespace,
            "Dimensions": [list(self._dimensions)],
            "Metrics": [{"Name": name, "Unit": unit} for name, unit in UNITS.items()],
        }
        head = {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [directive]}
        return {"_aws": head, **self._dimensions, **values}


def _write(line: str) -> None:
    # One call, so that lines of other threads do not come between.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
