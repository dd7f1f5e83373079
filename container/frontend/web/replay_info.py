"""Adds a header with all that an exact replay of an answer needs, if the request asks for it.

The header `X-Replay-Info: true` asks for it. SageMaker passes on no headers of clients; through it,
`replay-info=true` in the custom attributes does, and the answer has the values at their end. The
values are one JSON object in ASCII.
"""

import json
import re

from flask import Flask, Response, request

from container import __version__
from container.frontend.generation.running_request import RunningRequest
from container.frontend.web.http_request import current_request

HEADER = "X-Replay-Info"
CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
_REPLAY_INFO = re.compile(r"(?:^|[,;])\s*replay-info=true\b")


def add_headers(app: Flask) -> None:
    """Answer requests that ask; a seed is chosen before the first token, so streams too."""

    @app.after_request
    def add(response: Response) -> Response:
        attributes = request.headers.get(CUSTOM_ATTRIBUTES, "")
        by_attributes = _REPLAY_INFO.search(attributes) is not None
        running = current_request().trace.running
        if not running or not (by_attributes or request.headers.get(HEADER) == "true"):
            return response
        info = json.dumps(replay_info(running), separators=(",", ":"))
        response.headers[HEADER] = info
        if by_attributes:
            forwarded = response.headers.get(CUSTOM_ATTRIBUTES, attributes)
            rest = _REPLAY_INFO.sub("", forwarded).strip(",; ")
            response.headers[CUSTOM_ATTRIBUTES] = f"{rest}{',' * bool(rest)}replay-info={info}"
        return response


def replay_info(running: list[RunningRequest]) -> dict[str, object]:
    """Return seed, adapter and facts about the model; `seed` is that of the first choice."""
    first = running[0]
    info = first.info
    return {
        "seed": None if first.params.is_greedy else first.params.seed,
        "adapter": first.adapter or None,
        "version": __version__,
        "model_id": info.model_id,
        "model_sha": info.model_sha,
        "dtype": info.dtype,
        "quantize": info.quantize,
        "device": info.device,
        "cpu": info.cpu,
        "attention": info.attention,
        "tensor_parallel": info.tensor_parallel,
        "fallbacks": len(info.fallbacks),
    }
