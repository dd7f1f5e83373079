"""TGI's `x-...` headers: times and token counts, on every answer with generated tokens.

Seconds in x-compute-time, else whole milliseconds; of several prompts in one request the sums. A
stream begins before its times are known, so it has only the first two. Names and units are TGI's
(router/src/server.rs at v3.3.7); it has none of them on errors.
"""

from flask import Flask, Response

from container.frontend.generation.running_request import RunningRequest
from container.frontend.web.http_request import current_request


def add_headers(app: Flask, compute_type: str | None) -> None:
    """Put the headers on every answer of an app that generates; `compute_type` None: the device."""

    @app.after_request
    def add(response: Response) -> Response:
        running = current_request().trace.running
        if running and response.status_code == 200:
            response.headers["x-compute-type"] = compute_type or running[0].info.device
            characters = sum(request.prompt_chars for request in running)
            response.headers["x-compute-characters"] = str(characters)
            if not response.is_streamed:
                response.headers.update(_times(running))
        return response


def _times(running: list[RunningRequest]) -> dict[str, str]:
    times = [request.times for request in running]
    return {
        "x-compute-time": f"{sum(time_of.total_s for time_of in times):.6f}",
        "x-total-time": _ms(sum(time_of.total_s for time_of in times)),
        "x-validation-time": _ms(sum(time_of.validation_s for time_of in times)),
        "x-queue-time": _ms(sum(time_of.queue_s for time_of in times)),
        "x-inference-time": _ms(sum(time_of.inference_s for time_of in times)),
        "x-time-per-token": _ms(sum(time_of.per_token_s for time_of in times)),
        "x-prompt-tokens": str(sum(request.prompt_tokens for request in running)),
        "x-generated-tokens": str(sum(request.completion_tokens for request in running)),
    }


def _ms(seconds: float) -> str:
    return str(max(0, round(seconds * 1000)))
