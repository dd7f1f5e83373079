"""TGI's `x-...` headers: what a request cost, on every answer that generated something.

Seconds in x-compute-time, else whole milliseconds; of several prompts in one request the sums. A
stream begins before its times are known, so it has only the first two. Names and units are TGI's
(router/src/server.rs at v3.3.7); it has none of them on errors.
"""

from flask import Flask, Response

from container.frontend.generation.running_request import RunningRequest
from container.frontend.generation.service import Service
from container.frontend.observability.tracked_requests import noted


def add_headers(app: Flask, service: Service, compute_type: str | None) -> None:
    """Put the headers on every answer of an app that generates; `compute_type` None: the device."""

    @app.after_request
    def add(response: Response) -> Response:
        running = noted()
        if running and response.status_code == 200:
            response.headers["x-compute-type"] = compute_type or service.info.device
            characters = sum(one.prompt_chars for one in running)
            response.headers["x-compute-characters"] = str(characters)
            if not response.is_streamed:
                response.headers.update(_times(running))
        return response


def _times(running: list[RunningRequest]) -> dict[str, str]:
    times = [one.times for one in running]
    return {
        "x-compute-time": f"{sum(one.total_s for one in times):.6f}",
        "x-total-time": _ms(sum(one.total_s for one in times)),
        "x-validation-time": _ms(sum(one.validation_s for one in times)),
        "x-queue-time": _ms(sum(one.queue_s for one in times)),
        "x-inference-time": _ms(sum(one.inference_s for one in times)),
        "x-time-per-token": _ms(sum(one.per_token_s for one in times)),
        "x-prompt-tokens": str(sum(one.prompt_tokens for one in running)),
        "x-generated-tokens": str(sum(one.completion_tokens for one in running)),
    }


def _ms(seconds: float) -> str:
    return str(max(0, round(seconds * 1000)))
