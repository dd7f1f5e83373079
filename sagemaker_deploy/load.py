"""Generates load on an endpoint and summarises the results.

Closed loop: each client sends its next request when the last is answered, so the number of clients
is the concurrency. Threads suffice, since a client waits nearly all the time.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sagemaker_deploy import invoke as calls
from sagemaker_deploy.errors import DeployError

BAR = 40


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Times are in seconds; `error` is empty if it succeeded."""

    latency_s: float
    first_text_s: float
    tokens: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of a run: latencies in seconds, requests and tokens per second."""

    clients: int
    requests: int
    failed: int
    wall_s: float
    latency_s: dict[str, float]
    first_text_s: dict[str, float]
    requests_per_s: float
    tokens_per_s: float
    errors: dict[str, int]


Send = Callable[[], Sample]


def run(send: Send, clients: int, requests: int) -> tuple[list[Sample], float]:
    """Send requests from concurrent clients; return the samples and the elapsed seconds."""
    counter = iter(range(requests))
    lock = threading.Lock()
    samples: list[Sample] = []

    def client() -> None:
        while True:
            with lock:
                if next(counter, None) is None:
                    return
            sample = send()
            with lock:
                samples.append(sample)

    started = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return samples, time.perf_counter() - started


def streamed(open_stream: Callable[[], Iterator[bytes]]) -> Sample:
    """Time one streamed request; each event with text counts as a token."""
    started = time.perf_counter()
    first, tokens = 0.0, 0
    try:
        for _ in calls.stream_text(open_stream()):
            first = first or time.perf_counter() - started
            tokens += 1
    except DeployError as error:
        return Sample(time.perf_counter() - started, first, tokens, _short(error))
    return Sample(time.perf_counter() - started, first, tokens)


def whole(call: Callable[[], bytes]) -> Sample:
    """Time one request without streaming; `usage` or `details` has its number of tokens."""
    started = time.perf_counter()
    try:
        body = call()
    except DeployError as error:
        return Sample(time.perf_counter() - started, 0.0, 0, _short(error))
    return Sample(time.perf_counter() - started, 0.0, counted(body))


def counted(body: bytes) -> int:
    """Return the number of generated tokens that a response reports; 0 if it reports none."""
    try:
        answer = json.loads(body)
    except ValueError:
        return 0
    return tokens_of(answer)


def tokens_of(answer: Any) -> int:
    """Return the number of generated tokens that an answer of any API reports, or 0."""
    first = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(first, dict):
        return 0
    usage, details = first.get("usage") or {}, first.get("details") or {}
    count = usage.get("completion_tokens") or usage.get("output_tokens")
    return int(count or details.get("generated_tokens") or 0)


def summarize(samples: list[Sample], clients: int, wall_s: float) -> Summary:
    """Summarise a run; times are of successful requests only."""
    succeeded = [sample for sample in samples if not sample.error]
    errors: dict[str, int] = {}
    for sample in samples:
        if sample.error:
            errors[sample.error] = errors.get(sample.error, 0) + 1
    firsts = [sample.first_text_s for sample in succeeded if sample.first_text_s]
    return Summary(
        clients,
        len(samples),
        len(samples) - len(succeeded),
        wall_s,
        percentiles([sample.latency_s for sample in succeeded]),
        percentiles(firsts),
        len(succeeded) / wall_s,
        sum(sample.tokens for sample in succeeded) / wall_s,
        errors,
    )


def percentiles(values: list[float]) -> dict[str, float]:
    """Return the 50th, 90th and 99th percentile (nearest rank) and the largest; {} if empty."""
    if not values:
        return {}
    ordered = sorted(values)
    ranks = {f"p{rank}": ordered[-(-rank * len(ordered) // 100) - 1] for rank in (50, 90, 99)}
    return ranks | {"max": ordered[-1]}


def histogram(values: list[float], buckets: int = 12) -> list[str]:
    """Draw latencies as lines of bars; the first column is a bucket's upper bound in seconds."""
    if not values:
        return []
    low, high = min(values), max(values)
    width = (high - low) / buckets or 1.0
    counts = [0] * buckets
    for value in values:
        counts[min(int((value - low) / width), buckets - 1)] += 1
    most = max(counts)
    return [
        f"{low + width * (index + 1):8.3f} s  {'#' * round(BAR * count / most):<{BAR}} {count}"
        for index, count in enumerate(counts)
    ]


def _short(error: DeployError) -> str:
    return error.message.splitlines()[0][:120]
