"""Checks the health of a server on this machine, as SageMaker does."""

import http.client
import json
from contextlib import closing

TIMEOUT_S = 5.0
NOT_LISTENING = "starting"


def is_healthy(port: int) -> bool:
    """Whether a server on localhost answers /ping with status 200; uses no proxy."""
    return why_unhealthy(port) is None


def why_unhealthy(port: int) -> str | None:
    """Return why /ping on localhost is not 200, such as the stage of the start; None if it is."""
    with closing(http.client.HTTPConnection("localhost", port, timeout=TIMEOUT_S)) as connection:
        try:
            connection.request("GET", "/ping")
            response = connection.getresponse()
            return None if response.status == 200 else _reason(response.read())
        except (OSError, http.client.HTTPException):
            return NOT_LISTENING


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return NOT_LISTENING
