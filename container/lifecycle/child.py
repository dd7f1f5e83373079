"""The supervisor's children: how a process is started, restarted and ended.

A child has a name, which is also its subcommand of `python -m container`, gunicorn excepted.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import TypeAlias

from container.errors import ConfigError, ModelLoadError

log = logging.getLogger(__name__)

Process: TypeAlias = "subprocess.Popen[bytes]"

MAX_RESTARTS = 3
# A restart cannot help here.
FINAL_EXIT_CODES = (ConfigError.exit_code, ModelLoadError.exit_code)
KEEPS_DYING = 4


class Child:
    """Owns one process, and restarts it when it dies."""

    def __init__(self, name: str, module: str, *arguments: str, environ: dict[str, str]) -> None:
        self.name = name
        self._command = [sys.executable, "-m", module, *arguments]
        self._environ = environ
        self._restarts = 0
        self._process = self._start()

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._process.poll()

    def keep_alive(self) -> int | None:
        """Restart the process if it has died.

        Returns the exit code for the supervisor when another restart cannot help.
        """
        code = self.poll()
        if code is None:
            return None
        if code in FINAL_EXIT_CODES:
            return code
        if self._restarts == MAX_RESTARTS:
            log.error(
                "%s: died %d times, not restarted again; the container stops",
                self.name, MAX_RESTARTS + 1,
            )  # fmt: skip
            return KEEPS_DYING
        self._restarts += 1
        log.error(
            "%s: died (%s); restart %d of %d",
            self.name, cause(code), self._restarts, MAX_RESTARTS,
        )  # fmt: skip
        self._process = self._start()
        return None

    def terminate(self) -> None:
        """Ask the process to finish its work and leave."""
        self._process.terminate()

    def wait(self, until: float) -> bool:
        """Wait until a (monotonic) time; return whether the process has left."""
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Kill the process, if it has not left, with all processes that it started."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _start(self) -> Process:
        # Its own session: a terminal's ^C reaches the supervisor only, which then stops in order.
        return subprocess.Popen(self._command, env=self._environ, start_new_session=True)


def reap_strangers(children: Iterable[Child]) -> None:
    """Reap orphans that process 1 inherits; children of ours are reaped by their owners."""
    if os.getpid() != 1:
        return
    with contextlib.suppress(ChildProcessError):
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None and ended.si_pid not in {child.pid for child in children}:
            os.waitpid(ended.si_pid, 0)


def cause(code: int) -> str:
    """Describe an exit code."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
