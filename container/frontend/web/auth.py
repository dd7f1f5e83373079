"""Guards of every route: the API key, the count of requests, and errors."""

import hmac

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from container.errors import Unauthorized
from container.frontend.observability.metrics import Metrics
from container.frontend.web import error_responses
from container.frontend.web.error_responses import (
    ClientDisconnected,
    ErrorResponse,
    dialect_of_path,
)
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

    _count_requests(app, metrics)

    @app.before_request
    def check_key() -> None:
        is_page = request.path.startswith(("/docs", "/ui/")) or request.path in ("/", "/ui")
        is_open = request.path in OPEN_PATHS or (is_page and request.method == "GET")
        is_preflight = request.method == "OPTIONS"  # browsers ask without the key
        if api_key is None or is_open or is_preflight:
            return
        headers = request.headers
        authorization, x_api_key = headers.get("Authorization", ""), headers.get("x-api-key", "")
        if not has_key(authorization, x_api_key, api_key):
            raise Unauthorized(
                "the header 'Authorization: Bearer <API_KEY>' (or 'x-api-key: <API_KEY>') is "
                "missing or wrong"
            )

    @app.errorhandler(ClientDisconnected)
    def client_disconnected(_: ClientDisconnected) -> Response:
        return Response(status=CLIENT_DISCONNECTED_STATUS)

    @app.errorhandler(Exception)
    def explain(error: Exception) -> Response:
        if isinstance(error, HTTPException) and not isinstance(error, RequestEntityTooLarge):
            return error_responses.routing_error_response(error)
        cause, dialect = error_responses.split(error, dialect_of_path(request.path))
        return error_responses.error_response(error_responses.to_client_error(cause), dialect)


def _count_requests(app: Flask, metrics: Metrics) -> None:
    """Count each POST once when it comes and once for its outcome."""

    @app.before_request
    def count() -> None:
        if request.method == "POST":
            metrics.count_request()

    @app.after_request
    def count_answer(response: Response) -> Response:
        if request.method != "POST" or response.is_streamed:
            return response  # a stream counts itself at its end
        if isinstance(response, ErrorResponse):
            metrics.count_failure(response.error)
        elif response.status_code == CLIENT_DISCONNECTED_STATUS:
            metrics.count_aborted()
        else:
            metrics.count_answer(response.status_code)
        return response


# The headers that a client's key may be in: OpenAI's and Anthropic's.
KEY_HEADERS = frozenset({"authorization", "x-api-key"})


def has_key(authorization: str, x_api_key: str, api_key: str) -> bool:
    """Whether a client sends the key, in OpenAI's header or in Anthropic's."""
    scheme, _, token = authorization.partition(" ")
    sent = token if scheme.lower() == "bearer" else x_api_key
    return hmac.compare_digest(sent.encode(), api_key.encode())
