"""Sticky sessions: a file for each open one, shared by the frontends."""

import contextlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from container.errors import MalformedRequest, Overloaded, Unavailable
from container.files import write_atomically

log = logging.getLogger(__name__)

# More would make the folder slow to read; each frontend looks for those that have ended so often.
MAX_OPEN, SWEEP_S = 10_000, 10.0
ID = re.compile(r"[A-Za-z0-9](-*[A-Za-z0-9]){0,255}")


@dataclass(frozen=True, slots=True)
class Session:
    """An open session; `until` is its end in seconds since 1970."""

    sessions: "Sessions"
    id: str
    until: float

    def remaining_s(self) -> float:
        """Return how long it lasts. Raises MalformedRequest if it has been closed."""
        return self.sessions.remaining_s(self.id)


class Sessions:
    """The sessions of this container; `folder` None: they are switched off."""

    def __init__(
        self, folder: Path | None, lifetime_s: int, now: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._lifetime_s = lifetime_s
        self._now = now
        self._swept_at = self._first_end = 0.0  # no session that is left ends before _first_end

    @property
    def is_on(self) -> bool:
        """Whether there can be sessions."""
        return self._folder is not None

    def open(self) -> Session:
        """Open a session. Raises Overloaded, or Unavailable if its file cannot be written."""
        folder = self._path("")
        session_id, until = secrets.token_hex(16), float(int(self._now()) + self._lifetime_s)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._make_room(folder)
            write_atomically(self._path(session_id), str(until))
        except OSError as error:
            log.error("sessions: writing %s failed: %s; none opens", folder, error.strerror)
            raise Unavailable(
                "no session can be opened: writing its file to the server's disk failed",
                retry_after_s=30,
            ) from error
        return Session(self, session_id, until)

    def find(self, session_id: str) -> Session:
        """Return an open session. Raises MalformedRequest for one that is not open."""
        return Session(self, session_id, self._until(session_id))

    def remaining_s(self, session_id: str) -> float:
        """Return how long a session lasts. Raises MalformedRequest for one that is not open."""
        return self._until(session_id) - self._now()

    def close(self, session_id: str) -> None:
        """End a session. Raises MalformedRequest for one that is not open."""
        self._until(session_id)
        self._path(session_id).unlink(missing_ok=True)

    def _until(self, session_id: str) -> float:
        try:
            until = float(self._path(session_id).read_text()) if ID.fullmatch(session_id) else 0.0
        except (OSError, ValueError):
            until = 0.0
        if until <= self._now():
            raise MalformedRequest(
                f"session {session_id[:80]!r} is not open: it has ended, or is of another instance",
                field="SessionId",
            )
        return until

    def _path(self, name: str) -> Path:
        assert self._folder is not None, "sessions are off"
        return self._folder / name

    def _make_room(self, folder: Path) -> None:
        """Drop the sessions that have ended, now and then. Raises Overloaded for too many."""
        is_due = abs(self._now() - self._swept_at) >= SWEEP_S  # a clock may be set back
        if is_due or (self._first_end <= self._now() and _is_full(folder)):
            self._sweep(folder)
        if _is_full(folder):
            raise Overloaded(
                f"{MAX_OPEN} sessions are open, and no more can be; close some, or wait until they "
                "end (SAGEMAKER_SESSIONS_EXPIRATION)",
                retry_after_s=60,
            )

    def _sweep(self, folder: Path) -> None:
        self._swept_at = now = self._now()
        self._first_end = now + self._lifetime_s  # of sessions that open later
        for path in folder.iterdir():
            with contextlib.suppress(OSError, ValueError):
                until = float(path.read_text())
                if until <= now:
                    path.unlink(missing_ok=True)
                else:
                    self._first_end = min(self._first_end, until)


def _is_full(folder: Path) -> bool:
    return len(os.listdir(folder)) >= MAX_OPEN
