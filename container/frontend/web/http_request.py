"""The app's request class: Flask's request with its session and its trace."""

from typing import Any

from flask import Request, request

from container.frontend.generation import adapter_selection
from container.frontend.generation.request_context import RequestContext, RequestTrace
from container.frontend.generation.sessions import Session


class HttpRequest(Request):
    """Carries the session and the trace that the guards of a route have found.

    `opened` is a session that this request has opened.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.trace = RequestTrace()
        self.session: Session | None = None
        self.opened: Session | None = None


def current_request() -> HttpRequest:
    """Return the request that the app answers now."""
    assert isinstance(request, HttpRequest), "the app has another request class"
    return request


def request_context() -> RequestContext:
    """Build the context of the current request from its headers, for a view to pass down."""
    incoming = current_request()
    return RequestContext(
        adapter=incoming.headers.get(adapter_selection.HEADER, "").strip(),
        session=incoming.session,
        trace=incoming.trace,
        connection=incoming.environ.get("gunicorn.socket"),
    )
