"""Counters of the proxy in Prometheus' text format."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
PREFIX = "sagemaker_proxy"
Labels = tuple[tuple[str, str], ...]


class Histogram:
    """Seconds in buckets, for each model."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, model: str, seconds: float) -> None:
        """Add a value."""
        counts = self._counts.setdefault(model, [0] * (len(BUCKETS_S) + 1))
        counts[sum(seconds > bound for bound in BUCKETS_S)] += 1
        self._sums[model] = self._sums.get(model, 0.0) + seconds

    def lines(self, name: str) -> Iterator[str]:
        """Yield the lines of the text format."""
        yield f"# TYPE {name} histogram"
        for model, counts in sorted(self._counts.items()):
            total = 0
            for bound, count in zip((*BUCKETS_S, "+Inf"), counts, strict=True):
                total += count
                yield f'{name}_bucket{{model="{escape(model)}",le="{bound}"}} {total}'
            yield f'{name}_sum{{model="{escape(model)}"}} {self._sums[model]:.6f}'
            yield f'{name}_count{{model="{escape(model)}"}} {total}'


class Metrics:
    """The counters of the proxy; only the event loop changes them."""

    def __init__(self) -> None:
        self.requests: Counter[Labels] = Counter()
        self.tokens: Counter[Labels] = Counter()
        self.seconds = Histogram()
        self.first_seconds = Histogram()
        self.num_running = 0

    def text(self, retries: Mapping[str, Mapping[Any, int]], waiting: Mapping[str, int]) -> str:
        """Return the text; `retries` and `waiting` are the endpoints' own, by model."""
        retried = {
            (("model", model), ("cause", str(cause))): count
            for model, counts in retries.items()
            for cause, count in counts.items()
        }
        waits = {(("model", model),): count for model, count in waiting.items()}
        lines = [
            *_lines(f"{PREFIX}_requests_total", "counter", self.requests.items()),
            *_lines(f"{PREFIX}_tokens_total", "counter", self.tokens.items()),
            *_lines(f"{PREFIX}_retries_total", "counter", retried.items()),
            *_lines(f"{PREFIX}_waiting_for_capacity", "gauge", waits.items()),
            *_lines(f"{PREFIX}_running_requests", "gauge", [((), self.num_running)]),
            *self.seconds.lines(f"{PREFIX}_request_seconds"),
            *self.first_seconds.lines(f"{PREFIX}_first_bytes_seconds"),
        ]
        return "\n".join(lines) + "\n"


def _lines(name: str, kind: str, values: Iterable[tuple[Labels, int]]) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    for labels, value in sorted(values):
        inner = ",".join(f'{key}="{escape(text)}"' for key, text in labels)
        yield f"{name}{{{inner}}} {value}" if inner else f"{name} {value}"


def escape(text: str) -> str:
    """Escape a label's value."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
