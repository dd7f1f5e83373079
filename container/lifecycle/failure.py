"""Why a container ends, as the last line of its log; `sagemaker_deploy why` reads it."""

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from container.errors import ExitCode
from container.settings.process_env import FAILURE_FILE

log = logging.getLogger(__name__)

MAX_CHARACTERS = 2000
REASONS: dict[int, str] = {
    ExitCode.WRONG_SETTINGS: "a setting is wrong; the lines above name it",
    ExitCode.UNUSABLE_MODEL: "the model or the user's code cannot be served; "
    "the lines above say why",
    ExitCode.RESTARTS_EXHAUSTED: "a process of the server keeps dying; "
    "the lines above have the cause",
    ExitCode.FRONTENDS_DIED: "the HTTP side ended; the lines above have the cause",
}


def write_failure(reason: str, environ: Mapping[str, str] = os.environ) -> None:
    """Leave a reason for the supervisor; called by a child process before it exits."""
    path = environ.get(FAILURE_FILE)
    if path:
        with contextlib.suppress(OSError):
            Path(path).write_text(reason)


def read_failure(environ: Mapping[str, str]) -> str:
    """Return the reason that a child left, or nothing."""
    try:
        return Path(environ[FAILURE_FILE]).read_text()
    except (KeyError, OSError):
        return ""


def log_end(code: int, reason: str = "") -> None:
    """Write the last line of the log."""
    reason = " ".join(reason.split())[:MAX_CHARACTERS] or REASONS.get(code, "see the lines above")
    log.error("the container ends with exit code %d: %s", code, reason)
