"""Checks the health of a server on this machine, as SageMaker does."""

import http.client
from contextlib import closing

TIMEOUT_S = 5.0


def is_healthy(port: int) -> bool:
    """Whether a server on localhost answers /ping with status 200; uses no proxy."""
    with closing(http.client.HTTPConnection("localhost", port, timeout=TIMEOUT_S)) as connection:
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
