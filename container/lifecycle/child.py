"""The supervisor's children: how one process is started, judged when it dies, drained and ended.

A child has a name, which is also its subcommand of `python -m container`, gunicorn excepted.
"""

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import TypeAlias

from container.errors import ConfigError, ModelLoadError

log = logging.getLogger(__name__)

Process: TypeAlias = "subprocess.Popen[bytes]"

MAX_RESTARTS = 3
# Beyond its own limit, for a child that hangs; workers wait 2 s for their last messages to be read.
DRAIN_SLACK_S = 3.0
# These will not get better by trying again.
FINAL_EXIT_CODES = (ConfigError.exit_code, ModelLoadError.exit_code)
KEEPS_DYING = 4


class Child:
    """Owns one process, and another in its place when it has died."""

    def __init__(self, name: str, module: str, *arguments: str, environ: dict[str, str]) -> None:
        self.name = name
        self._command = [sys.executable, "-m", module, *arguments]
        self._environ = environ
        self._restarts = 0
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code, once it has left."""
        return self._process.poll()

    def keep_alive(self) -> int | None:
        """Start it again if it has died. Returns the exit code to leave with when that is vain."""
        code = self.poll()
        if code is None:
            return None
        if code in FINAL_EXIT_CODES:
            return code
        if self._restarts == MAX_RESTARTS:
            log.error("the %s died %d times; giving up", self.name, MAX_RESTARTS + 1)
            return KEEPS_DYING
        self._restarts += 1
        log.error(
            "the %s died (%s); restart %d of %d",
            self.name, cause(code), self._restarts, MAX_RESTARTS,
        )  # fmt: skip
        self._process = self._start()
        return None

    def begin_drain(self) -> None:
        """Tell it to finish its work and leave."""
        self._process.terminate()

    def end_drain(self, until: float) -> None:
        """Wait until it has left, until this (monotonic) time and a little longer."""
        try:
            self._process.wait(max(0.0, until - time.monotonic()) + DRAIN_SLACK_S)
        except subprocess.TimeoutExpired:
            log.error("the %s did not finish in time and is killed", self.name)

    def stop(self, grace_s: float = 0.0) -> None:
        """End it, though it may have ended already: politely first, if it gets any time."""
        if grace_s:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        self._process.kill()
        self._process.wait()

    def _start(self) -> Process:
        # Its own session: a terminal's ^C reaches the supervisor only, which then stops in order.
        return subprocess.Popen(self._command, env=self._environ, start_new_session=True)


def reap_strangers(children: Iterable[Child]) -> None:
    """Collect orphans, which fall to process 1; our own children are left to their owners."""
    if os.getpid() != 1:
        return
    with contextlib.suppress(ChildProcessError):
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None and ended.si_pid not in {child.pid for child in children}:
            os.waitpid(ended.si_pid, 0)


def cause(code: int) -> str:
    """An exit code in words."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
