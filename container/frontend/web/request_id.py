"""The header `x-request-id` of every answer: the client's own, or a new one.

OpenAI's and Anthropic's clients show it with their errors; Anthropic's name for it is `request-id`.
"""

import re
import secrets

from flask import Flask, Response, request

HEADER = "x-request-id"
ANTHROPIC_HEADER = "request-id"
_ACCEPTED = re.compile(r"[\x21-\x7e]{1,128}")


def choose(requested: str) -> str:
    """Return the client's own id, if it is one, or a new one."""
    return requested if _ACCEPTED.fullmatch(requested) else f"req_{secrets.token_hex(12)}"


def add_header(app: Flask) -> None:
    """Put it on every answer of an app."""

    @app.after_request
    def add(response: Response) -> Response:
        name = choose(request.headers.get(HEADER, ""))
        response.headers[HEADER] = response.headers[ANTHROPIC_HEADER] = name
        return response
