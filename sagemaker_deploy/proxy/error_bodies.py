"""Errors in the form of the client's API."""

from sagemaker_deploy.proxy.plans import TYPED, Api
from sagemaker_deploy.proxy.translation.events import Json, write

OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    501: "invalid_request_error",
}
ANTHROPIC_TYPES = OPENAI_TYPES | {413: "request_too_large", 503: "overloaded_error"}


def error_body(api: Api, status: int, message: str) -> Json:
    """Build the body of an error response."""
    if api is Api.MESSAGES:
        kind = ANTHROPIC_TYPES.get(status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}
    if api is Api.GENERATE:
        return {"error": message, "error_type": "proxy" if status >= 500 else "validation"}
    kind = OPENAI_TYPES.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def has_form(api: Api, body: Json | None) -> bool:
    """Return whether a container's error object is of the client's API, and can be passed on."""
    if not body:
        return False
    if api is Api.MESSAGES:
        return body.get("type") == "error"
    if api is Api.GENERATE:
        return isinstance(body.get("error"), str)
    return isinstance(body.get("error"), dict)


def error_event(api: Api, status: int, message: str) -> bytes:
    """Encode an error as the last event of a stream; it begins on a new line."""
    body = error_body(api, status, message)
    if api is Api.RESPONSES:
        body = {"type": "error", "code": "server_error", "message": message, "param": None}
    return b"\n\n" + write(body, typed=api in TYPED)
