"""Hooks that trace each POST of an app, from its headers to the last byte of its answer."""

from flask import Flask, Response

from container.frontend.generation.request_context import RequestTrace
from container.frontend.observability.tracing import Tracer
from container.frontend.web.http_request import current_request

INFERENCE_ID = "X-Amzn-SageMaker-Inference-Id"
CARRIED_HEADERS = ("traceparent", "tracestate")  # W3C Trace Context


def watch(app: Flask, tracer: Tracer) -> None:
    """Trace every POST of an app, to the last byte of its answer."""

    @app.before_request
    def begin() -> None:
        incoming = current_request()
        if incoming.method == "POST" and incoming.url_rule is not None:
            carried = {name: incoming.headers.get(name, "") for name in CARRIED_HEADERS}
            inference_id = incoming.headers.get(INFERENCE_ID)
            incoming.trace = RequestTrace(incoming.url_rule.rule, carried, inference_id)

    @app.after_request
    def end(response: Response) -> Response:
        trace = current_request().trace
        if trace.route:
            response.call_on_close(lambda: tracer.record(trace, response.status_code))
        return response
