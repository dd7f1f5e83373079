"""Prometheus metrics of requests under TGI's names, and those that TGI lacks.

Counters and histograms are of this process; with several frontends prometheus_client's
multiprocess files add them up. The engine's own are in
container.frontend.observability.engine_metrics.
"""

import os
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from container import errors
from container.errors import RequestError, ServingError
from container.frontend.generation.running_request import RunningRequest
from container.frontend.generation.service import Service
from container.frontend.observability.embedded_metrics import EmbeddedMetrics
from container.frontend.observability.engine_metrics import EngineCollector
from container.frontend.observability.metric_files import reserve_metric_files
from container.messages.engine import STEP_SECONDS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# TGI's words for why a request failed; those without one there keep ours.
FAILURES = {errors.TemplateFailed: "template", errors.GenerationFailed: "generation"}
# The weight of the newest request in the mean duration of late.
SMOOTHING = 0.1
TOKENS = tuple(float(2**power) for power in range(18))


class TgiNames:
    """Takes the `_total` off TGI's counters, which prometheus_client puts on every counter."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics of a registry; renamed ones have no type, since that is in the name."""
        for metric in self._registry.collect():
            if metric.type != "counter":
                yield metric
                continue
            renamed = Metric(metric.name, metric.documentation, "unknown")
            renamed.samples = [
                sample._replace(name=metric.name)
                for sample in metric.samples
                if sample.name.endswith("_total")
            ]
            yield renamed


class Metrics:
    """Owns this process's metrics. `mean_duration_s` is of the last requests, without queueing."""

    def __init__(self, service: Service, embedded: EmbeddedMetrics | None = None) -> None:
        self._embedded = embedded
        reserve_metric_files()
        registry = CollectorRegistry()
        self._requests = Counter("tgi_request_count", "Requests received", registry=registry)
        self._successes = Counter("tgi_request_success", "Requests answered", registry=registry)
        self._failures = Counter(
            "tgi_request_failure", "Requests failed", ["err"], registry=registry
        )
        self._aborted = Counter("tgi_request_aborted", "Clients that left", registry=registry)
        self._adapter_requests = Counter(
            "tgi_adapter_request_count", "Requests answered, by LoRA adapter", ["adapter"],
            registry=registry,
        )  # fmt: skip
        self._adapter_tokens = Counter(
            "tgi_adapter_generated_tokens", "Tokens generated, by LoRA adapter", ["adapter"],
            registry=registry,
        )  # fmt: skip
        self._cut = Counter(
            "tgi_request_deadline_exceeded", "Answers cut by their deadline", registry=registry
        )
        seconds = {
            "tgi_request_duration": "From the request to its last token",
            "tgi_request_validation_duration": "Template, tokenizer and checks",
            "tgi_request_queue_duration": "Before the first step",
            "tgi_request_inference_duration": "From the submission to the last token",
            "tgi_request_mean_time_per_token_duration": "Between tokens, mean of a request",
            "tgi_request_first_token_duration": "From the request to its first token",
            "tgi_request_between_tokens_duration": "Between two events of a request",
        }
        self._seconds = {
            name: Histogram(name, meaning, buckets=STEP_SECONDS, registry=registry)
            for name, meaning in seconds.items()
        }
        tokens = {
            "tgi_request_input_length": "Prompt tokens",
            "tgi_request_max_new_tokens": "Most new tokens allowed",
            "tgi_request_generated_tokens": "Tokens generated",
            "tgi_request_cached_tokens": "Prompt tokens found in the KV cache",
        }
        self._tokens = {
            name: Histogram(name, meaning, buckets=TOKENS, registry=registry)
            for name, meaning in tokens.items()
        }
        self._registry = registry
        self.mean_duration_s: float | None = None
        self._collectors: list[Any] = [EngineCollector(service)]

    def add(self, collector: Collector) -> None:
        """Show another collector's metrics too."""
        self._collectors.append(collector)

    def count_request(self) -> None:
        """A request has come: an answer, a failure or an abort is counted for it later."""
        self._requests.inc()

    def count_failure(self, error: ServingError) -> None:
        """A request is answered with an error."""
        self._failures.labels(err=_failure(error)).inc()

    def count_aborted(self) -> None:
        """A client left before its answer was whole."""
        self._aborted.inc()

    def count_success(self) -> None:
        """A request is answered whole."""
        self._successes.inc()

    def count_answer(self, status: int) -> None:
        """Count a whole answer whose status does not come from a ServingError."""
        if status < 400:
            self._successes.inc()
        else:
            self._failures.labels(err="validation" if status < 500 else "handler").inc()

    def observe(self, running: RunningRequest) -> None:
        """Note the times and lengths of a request of the engine that has ended well."""
        if running.is_cut:
            self._cut.inc()
        if self._embedded is not None:
            self._embedded.observe(running)
        times = running.times
        self._update_mean_duration(times.total_s - times.queue_s)
        self._observe("tgi_request_duration", times.total_s)
        self._observe("tgi_request_validation_duration", times.validation_s)
        self._observe("tgi_request_queue_duration", times.queue_s)
        self._observe("tgi_request_inference_duration", times.inference_s)
        self._observe("tgi_request_mean_time_per_token_duration", times.per_token_s)
        self._observe("tgi_request_first_token_duration", times.first_token_s)
        for gap_s in running.gaps:
            self._observe("tgi_request_between_tokens_duration", gap_s)
        self._tokens["tgi_request_cached_tokens"].observe(running.prompt.cached_tokens)
        self._tokens["tgi_request_input_length"].observe(running.prompt_tokens)
        self._tokens["tgi_request_max_new_tokens"].observe(running.params.max_new_tokens)
        self._tokens["tgi_request_generated_tokens"].observe(running.completion_tokens)
        self._adapter_requests.labels(adapter=running.adapter).inc()
        self._adapter_tokens.labels(adapter=running.adapter).inc(running.completion_tokens)

    def observe_duration(self, seconds: float) -> None:
        """Note how long an answer took that the engine had no part in."""
        self._update_mean_duration(seconds)
        self._observe("tgi_request_duration", seconds)

    def _update_mean_duration(self, seconds: float) -> None:
        mean_s = seconds if self.mean_duration_s is None else self.mean_duration_s
        self.mean_duration_s = mean_s + SMOOTHING * (seconds - mean_s)

    def render(self) -> bytes:
        """The exposition text of the whole server."""
        registry = CollectorRegistry()
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        else:
            registry = self._registry
        named = CollectorRegistry()
        named.register(TgiNames(registry))
        for collector in self._collectors:
            named.register(collector)
        return generate_latest(named)

    def _observe(self, name: str, seconds: float) -> None:
        self._seconds[name].observe(max(0.0, seconds))


def _failure(error: ServingError) -> str:
    is_clients = isinstance(error, RequestError)
    return FAILURES.get(type(error), "validation" if is_clients else error.kind)
