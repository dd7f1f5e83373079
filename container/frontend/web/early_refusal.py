"""Refuses requests while the engine is full, before Flask sees them.

Such a refusal costs a few percent of one behind routes, JSON and schemas, so a flood of requests
takes little from the streams that this process sends. It is what the application would answer, too:
a request that needs more than its headers to be refused goes on to the application.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from container.frontend.clients.admission import overloaded
from container.frontend.generation.service import Service
from container.frontend.observability.metrics import Metrics
from container.frontend.web import request_id
from container.frontend.web.auth import has_key
from container.frontend.web.error_responses import WRITERS, Dialect, dialect_of_path, json_bytes
from container.frontend.web.retry_after import RetryAfter

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

INVOCATIONS = "/invocations"
# All other routes that generate; a test compares them with the application's.
PATHS = frozenset(
    {
        "/", "/generate", "/generate_stream", "/chat/completions", "/v1/chat/completions",
        "/openai/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
    }
)  # fmt: skip
# An application adds headers for these.
OTHER_HEADERS = ("HTTP_ORIGIN", "HTTP_X_AMZN_SAGEMAKER_CUSTOM_ATTRIBUTES",
                 "HTTP_X_AMZN_SAGEMAKER_SESSION_ID")  # fmt: skip
# The dialect of a longer body is not worth its parsing here.
MAX_PARSED = 65_536
PIECE = 65_536

# Returns the dialect of a body of /invocations.
DialectOfBody = Callable[[bytes], Dialect]


@dataclass(frozen=True, slots=True)
class EarlyRefusals:
    """A WSGI application around another one, for requests with a body of at most `max_bytes`.

    `dialect_of_body` is None where /invocations is not, or not always, for the engine.
    """

    app: "WSGIApplication"
    service: Service
    metrics: Metrics
    retry_after: RetryAfter
    max_bytes: int
    api_key: str | None
    dialect_of_body: DialectOfBody | None

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request."""
        num_bytes = self._refusable_bytes(environ)
        if num_bytes is None or not self.service.is_full:
            return self.app(environ, start_response)
        dialect = self._take_body(environ, num_bytes)
        return self._refuse(dialect, environ, start_response)

    def _refusable_bytes(self, environ: Mapping[str, str]) -> int | None:
        """Return the length of the body if its request may be refused here, else None."""
        path = environ["PATH_INFO"]
        is_invocation = path == INVOCATIONS and self.dialect_of_body is not None
        if environ["REQUEST_METHOD"] != "POST" or not (path in PATHS or is_invocation):
            return None
        length = environ.get("CONTENT_LENGTH", "")
        limit = min(self.max_bytes, MAX_PARSED) if is_invocation else self.max_bytes
        if not length.isdecimal() or int(length) > limit:
            return None
        is_json = environ.get("CONTENT_TYPE", "").startswith("application/json")
        if is_invocation and not is_json:
            return None
        if any(name in environ for name in OTHER_HEADERS):
            return None
        if self.api_key is not None and not has_key(
            environ.get("HTTP_AUTHORIZATION", ""), environ.get("HTTP_X_API_KEY", ""), self.api_key
        ):
            return None
        return int(length)

    def _take_body(self, environ: "WSGIEnvironment", num_bytes: int) -> Dialect:
        """Read the body, since a connection with unread bytes cannot be closed in peace."""
        reader = environ["wsgi.input"]
        path = environ["PATH_INFO"]
        # One that cannot be read is refused like any other.
        with contextlib.suppress(Exception):
            if path == INVOCATIONS and self.dialect_of_body is not None:
                return self.dialect_of_body(reader.read(num_bytes))
            while num_bytes > 0 and (piece := reader.read(min(PIECE, num_bytes))):
                num_bytes -= len(piece)
        return dialect_of_path(path)

    def _refuse(
        self, dialect: Dialect, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        error = overloaded()
        self.metrics.count_request()
        self.metrics.count_failure(error)
        body = json_bytes(WRITERS[dialect](error))
        name = request_id.choose(environ.get("HTTP_X_REQUEST_ID", ""))
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Retry-After", str(self.retry_after.seconds())),
            (request_id.HEADER, name),
            (request_id.ANTHROPIC_HEADER, name),
        ]
        start_response("429 TOO MANY REQUESTS", headers)
        return [body]
