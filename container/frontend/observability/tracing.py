"""Traces over OTLP: a span for each request, with its queue, prefill and decode inside it.

Spans are created at the end of an answer, from the times that its RunningRequest keeps anyway, so
nothing is carried from greenlet to greenlet. The SDK's sender is a thread, which gevent makes one
more greenlet. Without OTLP_ENDPOINT nothing of OpenTelemetry is imported.

Attribute names are those of OpenTelemetry's semantic conventions for HTTP and generative AI.
"""

import time
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from container import __version__
from container.frontend.generation.request_context import RequestTrace
from container.frontend.generation.running_request import RunningRequest

GRPC_PORT, HTTP_PORT = 4317, 4318
TRACES_PATH = "/v1/traces"


class Tracer(Protocol):
    """Records the traces of an app."""

    def record(self, trace: RequestTrace, status: int) -> None:
        """Record a request whose answer has ended."""
        ...


class OtlpTracer:
    """Implements Tracer: sends to a collector over OTLP/HTTP, in batches, in the background."""

    def __init__(self, endpoint: str, service_name: str) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": service_name, "service.version": __version__})
        provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=traces_url(endpoint))
        provider.add_span_processor(BatchSpanProcessor(exporter))
        self._otel = trace
        self._tracer = provider.get_tracer("container", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, trace: RequestTrace, status: int) -> None:
        """Build the spans of a request, as children of the caller's span if it sent one."""
        span = self._tracer.start_span(
            f"POST {trace.route}",
            context=self._propagator.extract(trace.headers),
            kind=self._otel.SpanKind.SERVER,
            start_time=trace.started_ns,
            attributes=_request_attributes(trace, status),
        )
        is_whole = all(running.has_ended for running in trace.running)
        if status >= 500 or not is_whole:
            span.set_status(self._otel.Status(self._otel.StatusCode.ERROR))
        inside = self._otel.set_span_in_context(span)
        for running in trace.running:
            for name, start_ns, end_ns in _phases(running):
                phase = self._tracer.start_span(name, context=inside, start_time=start_ns)
                phase.end(end_ns)
        span.end()


def traces_url(endpoint: str) -> str:
    """Return the URL for traces. TGI uses OTLP over gRPC; collectors take HTTP on the next port."""
    parts = urlsplit(endpoint)
    host = parts.netloc
    if parts.port == GRPC_PORT:
        host = f"{host.removesuffix(str(GRPC_PORT))}{HTTP_PORT}"
    path = parts.path if parts.path.strip("/") else TRACES_PATH
    return urlunsplit((parts.scheme, host, path, parts.query, ""))


def _request_attributes(trace: RequestTrace, status: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "http.request.method": "POST",
        "http.route": trace.route,
        "http.response.status_code": status,
    }
    if trace.inference_id is not None:
        attributes["aws.sagemaker.inference_id"] = trace.inference_id
    if trace.running:
        attributes |= {
            "gen_ai.usage.input_tokens": sum(running.prompt_tokens for running in trace.running),
            "gen_ai.usage.output_tokens": sum(
                running.completion_tokens for running in trace.running
            ),
            "gen_ai.request.max_tokens": trace.running[0].params.max_new_tokens,
        }
    return attributes


def _phases(running: RunningRequest) -> list[tuple[str, int, int]]:
    """Return the name, start and end (ns since 1970) of each phase of a request with a token."""
    first, last = running.first_token_at, running.last_token_at
    if first is None or last is None:
        return []
    offset_ns = time.time_ns() - time.monotonic_ns()
    begun = min(first, running.submitted_at + running.prompt.queue_s)
    spans = [("queue", running.submitted_at, begun), ("prefill", begun, first)]
    spans.append(("decode", first, last))
    return [
        (name, int(start * 1e9) + offset_ns, int(end * 1e9) + offset_ns)
        for name, start, end in spans
    ]
