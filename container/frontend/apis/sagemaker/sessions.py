"""Sticky sessions: SageMaker sends all requests of a session to the instance that opened it.

A session is a file whose name is its id and whose content is when it ends, so every frontend knows
all of them. Bodies are those of vLLM, DJL and AWS's model-hosting-container-standards 0.1; both
spellings of the header that tells a new id are sent, since those differ.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec
from flask import Flask, Response, request

from container.errors import MalformedRequest
from container.frontend.generation.sessions import Sessions
from container.frontend.web.http_request import current_request
from container.frontend.web.request_body import read_bytes

HEADER = "X-Amzn-SageMaker-Session-Id"
NEW_HEADER = "X-Amzn-SageMaker-New-Session-Id"
CLOSED_HEADER = "X-Amzn-SageMaker-Closed-Session-Id"
NEW, CLOSE = "NEW_SESSION", "CLOSE"
# Longer bodies are no session requests, and are not parsed to find out.
MAX_BODY = 200


def watch(app: Flask, sessions: Sessions) -> None:
    """Answer session requests, check ids, and note the session of any other request."""

    @app.before_request
    def check() -> Response | None:
        header_id = request.headers.get(HEADER, "").strip()
        if request.path != "/invocations" or request.method != "POST":
            return None
        if not sessions.is_on:
            if header_id:
                raise MalformedRequest(
                    f"the header {HEADER} needs SAGEMAKER_ENABLE_STATEFUL_SESSIONS=true"
                )
            return None
        session_request = _session_request()
        if session_request == CLOSE:
            return _close(sessions, header_id)
        if session_request == NEW or header_id == NEW:
            incoming = current_request()
            incoming.opened = incoming.session = sessions.open()
            return Response(status=200) if session_request == NEW else None
        if header_id:
            current_request().session = sessions.find(header_id)
        return None

    @app.after_request
    def add_headers(response: Response) -> Response:
        opened = current_request().opened
        if opened is not None:
            ends = datetime.fromtimestamp(opened.until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            response.headers[HEADER] = f"{opened.id}; Expires={ends}"
            response.headers[NEW_HEADER] = f"{opened.id}; Expires={ends}"
        return response


def _session_request() -> str | None:
    """Return the kind of a session request, or None. Raises MalformedRequest for a wrong one."""
    if not 0 < (request.content_length or 0) <= MAX_BODY:
        return None
    try:
        body: Any = msgspec.json.decode(read_bytes(request, cache=True))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # for the route to refuse
    if not isinstance(body, dict) or "requestType" not in body:
        return None
    kind = body["requestType"]
    if kind not in (NEW, CLOSE):
        raise MalformedRequest(f"`requestType` must be {NEW} or {CLOSE}", field="requestType")
    if len(body) > 1:
        others = ", ".join(name for name in body if name != "requestType")
        raise MalformedRequest(f"a session request has only `requestType`, not {others}")
    return str(kind)


def _close(sessions: Sessions, session_id: str) -> Response:
    if not session_id:
        body = {"error": f"a {CLOSE} request needs the header {HEADER}", "error_type": "session"}
        return Response(msgspec.json.encode(body), 424, mimetype="application/json")
    sessions.close(session_id)
    return Response(status=200, headers={CLOSED_HEADER: session_id})
