"""Sticky sessions: SageMaker sends all requests of a session to the instance that opened it.

A session is a file whose name is its id and whose content is when it ends, so every frontend knows
all of them. Bodies are those of vLLM, DJL and AWS's model-hosting-container-standards 0.1; both
spellings of the header that tells a new id are sent, since those differ.
"""

import contextlib
import re
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from flask import Flask, Response, g, has_request_context, request

from container.errors import MalformedRequest
from container.messages import SamplingParams

HEADER = "X-Amzn-SageMaker-Session-Id"
NEW_HEADER = "X-Amzn-SageMaker-New-Session-Id"
CLOSED_HEADER = "X-Amzn-SageMaker-Closed-Session-Id"
NEW, CLOSE = "NEW_SESSION", "CLOSE"
ID = re.compile(r"[A-Za-z0-9](-*[A-Za-z0-9]){0,255}")
# Longer bodies are no session requests, and are not parsed to find out.
MAX_BODY = 200


class Sessions:
    """The sessions of this container; `folder` None: they are switched off."""

    def __init__(
        self, folder: Path | None, lifetime_s: int, now: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._lifetime_s = lifetime_s
        self._now = now

    @property
    def is_on(self) -> bool:
        """Whether there can be sessions."""
        return self._folder is not None

    def open(self) -> tuple[str, float]:
        """Make a session; its id and when it ends (seconds since 1970)."""
        folder = self._path("")
        folder.mkdir(parents=True, exist_ok=True)
        self._sweep(folder)
        session_id, until = secrets.token_hex(16), float(int(self._now()) + self._lifetime_s)
        self._path(session_id).write_text(str(until))
        return session_id, until

    def remaining_s(self, session_id: str) -> float:
        """How long a session lasts. Raises MalformedRequest for one that is not open."""
        try:
            until = float(self._path(session_id).read_text()) if ID.fullmatch(session_id) else 0.0
        except (OSError, ValueError):
            until = 0.0
        if until <= self._now():
            raise MalformedRequest(
                f"session {session_id[:80]!r} is not open: it has ended, or is of another instance",
                field="SessionId",
            )
        return until - self._now()

    def close(self, session_id: str) -> None:
        """End a session. Raises MalformedRequest for one that is not open."""
        self.remaining_s(session_id)
        self._path(session_id).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert self._folder is not None, "sessions are off"
        return self._folder / name

    def _sweep(self, folder: Path) -> None:
        for path in folder.iterdir():
            with contextlib.suppress(OSError, ValueError):
                if float(path.read_text()) <= self._now():
                    path.unlink(missing_ok=True)


def watch(app: Flask, sessions: Sessions) -> None:
    """Answer session requests, check ids, and note the session of any other request."""

    @app.before_request
    def check() -> Response | None:
        given = request.headers.get(HEADER, "").strip()
        if request.path != "/invocations" or request.method != "POST":
            return None
        if not sessions.is_on:
            if given:
                raise MalformedRequest(
                    f"the header {HEADER} needs SAGEMAKER_ENABLE_STATEFUL_SESSIONS=true"
                )
            return None
        wanted = _session_request()
        if wanted == CLOSE:
            return _close(sessions, given)
        if wanted == NEW or given == NEW:
            g.new_session = sessions.open()
            g.session = g.new_session[0]
            return Response(status=200) if wanted == NEW else None
        if given:
            sessions.remaining_s(given)
            g.session = given
        return None

    @app.after_request
    def tell(response: Response) -> Response:
        if "new_session" in g:
            session_id, until = g.new_session
            ends = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            response.headers[HEADER] = f"{session_id}; Expires={ends}"
            response.headers[NEW_HEADER] = f"{session_id}; Expires={ends}"
        return response


def amend(sessions: Sessions, params: SamplingParams) -> SamplingParams:
    """Note the session of the current request, so that its prefix stays in the cache."""
    session = g.get("session") if has_request_context() else None
    if session is None:
        return params
    left_s = sessions.remaining_s(session)
    return msgspec.structs.replace(params, session=session, session_s=left_s)


def _session_request() -> str | None:
    """What kind of session request the body is, if any. Raises MalformedRequest for a wrong one."""
    if not 0 < (request.content_length or 0) <= MAX_BODY:
        return None
    try:
        body: Any = msgspec.json.decode(request.get_data(cache=True))
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


def _close(sessions: Sessions, given: str) -> Response:
    if not given:
        body = {"error": f"a {CLOSE} request needs the header {HEADER}", "error_type": "session"}
        return Response(msgspec.json.encode(body), 424, mimetype="application/json")
    sessions.close(given)
    return Response(status=200, headers={CLOSED_HEADER: given})
