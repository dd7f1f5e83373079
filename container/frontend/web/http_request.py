"""The app's request class: Flask's request with its session and its trace."""

import math
import time
from typing import Any

from flask import Flask, Request, current_app, request

from container.errors import InvalidParameter
from container.frontend.generation import adapter_selection
from container.frontend.generation.request_context import (
    MIN_DEADLINE_S,
    Deadlines,
    RequestContext,
    RequestTrace,
)
from container.frontend.generation.sessions import Session

DEADLINE_HEADER = "X-Request-Deadline"
_DEADLINES = "REQUEST_DEADLINES"  # the key of the app's configuration


class HttpRequest(Request):
    """Carries the session and the trace that the guards of a route have found.

    `opened` is a session that this request has opened.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.received_at = time.monotonic()
        self.trace = RequestTrace()
        self.session: Session | None = None
        self.opened: Session | None = None


def current_request() -> HttpRequest:
    """Return the request that the app answers now."""
    assert isinstance(request, HttpRequest), "the app has another request class"
    return request


def request_context() -> RequestContext:
    """Build the context of the current request from its headers, for a view to pass down.

    Raises InvalidParameter.
    """
    incoming = current_request()
    deadlines: Deadlines = current_app.config.get(_DEADLINES, Deadlines())
    return RequestContext(
        adapter=incoming.headers.get(adapter_selection.HEADER, "").strip(),
        session=incoming.session,
        trace=incoming.trace,
        connection=incoming.environ.get("gunicorn.socket"),
        received_at=incoming.received_at,
        deadlines=deadlines.at_most(_requested_s(incoming.headers.get(DEADLINE_HEADER, ""))),
    )


def set_deadlines(app: Flask, deadlines: Deadlines) -> None:
    """Set how long the answers of an app may take, unless a request asks for less."""
    app.config[_DEADLINES] = deadlines


def _requested_s(header: str) -> float:
    """Return the seconds that the header asks for, infinite without it."""
    if not header.strip():
        return math.inf
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not MIN_DEADLINE_S <= seconds < math.inf:
        raise InvalidParameter(
            f"the header {DEADLINE_HEADER} must be a number of seconds, at least "
            f"{MIN_DEADLINE_S:.0f}, not {header[:40]!r}",
            field=DEADLINE_HEADER,
        )
    return seconds
