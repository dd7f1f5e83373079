"""Guards of every route: the API key, the count of requests, and errors."""

import hmac

from flask import Flask, Request, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from container.errors import Unauthorized
from container.frontend.observability.metrics import Metrics
from container.frontend.web import error_responses
from container.frontend.web.error_responses import ClientDisconnected, dialect_of_path
from container.frontend.web.responses import CLIENT_DISCONNECTED_STATUS

OPEN_PATHS = frozenset(
    {
        "/ping",
        "/execution-parameters",
        "/health",
        "/info",
        "/metrics",
        "/openapi.json",
        "/api-doc/openapi.json",
    }
)


def add_guards(app: Flask, metrics: Metrics, api_key: str | None) -> None:
    """Check the API key, count requests, and turn exceptions into responses."""

    @app.before_request
    def check_key() -> None:
        is_page = request.path.startswith("/docs") or request.path == "/"
        is_open = request.path in OPEN_PATHS or (is_page and request.method == "GET")
        is_preflight = request.method == "OPTIONS"  # browsers ask without the key
        if api_key is None or is_open or is_preflight:
            return
        if not hmac.compare_digest(_key_of(request).encode(), api_key.encode()):
            raise Unauthorized(
                "the header 'Authorization: Bearer <API_KEY>' (or 'x-api-key: <API_KEY>') is "
                "missing or wrong"
            )

    @app.before_request
    def count() -> None:
        if request.method == "POST":
            metrics.count_request()

    @app.errorhandler(ClientDisconnected)
    def client_gone(_: ClientDisconnected) -> Response:
        return Response(status=CLIENT_DISCONNECTED_STATUS)

    @app.errorhandler(Exception)
    def explain(error: Exception) -> Response:
        if isinstance(error, HTTPException) and not isinstance(error, RequestEntityTooLarge):
            return error_responses.routing_error_response(error)
        cause, dialect = error_responses.split(error, dialect_of_path(request.path))
        client_error = error_responses.to_client_error(cause)
        if request.method == "POST":
            metrics.count_failure(client_error)
        return error_responses.error_response(client_error, dialect)


def _key_of(request: Request) -> str:
    """The key that a client sends, in OpenAI's header or in Anthropic's; "" without one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
