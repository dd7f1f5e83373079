"""The supervisor's children: how a process is started, restarted and ended.

A child has a name, which is also its subcommand of `python -m container`, gunicorn excepted.
"""

import collections
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

from container.errors import ExitCode
from container.ipc.heartbeat import HeartbeatLimits, HeartbeatMonitor
from container.settings.process_env import HEARTBEAT_FD

log = logging.getLogger(__name__)

Process: TypeAlias = "subprocess.Popen[bytes]"

# More restarts than this within the window mean that another one cannot help either.
MAX_RESTARTS = 3
RESTART_WINDOW_S = 600.0
# A restart cannot help here.
FINAL_EXIT_CODES = (ExitCode.WRONG_SETTINGS, ExitCode.UNUSABLE_MODEL)
# Time for a hung process to write its stacks.
ABORT_GRACE_S = 2.0


class Child:
    """Owns one process, and restarts it when it dies or, by its heartbeats, hangs.

    Without `heartbeat` limits the process sends none. `is_group`: of a process that hangs, those
    that it started are killed too. It inherits `fds`. `now` is a clock in seconds.
    """

    def __init__(
        self,
        name: str,
        module: str,
        *arguments: str,
        environ: dict[str, str],
        heartbeat: HeartbeatLimits | None = None,
        is_group: bool = True,
        fds: tuple[int, ...] = (),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._is_group = is_group
        self._fds = fds
        self._heartbeat = heartbeat
        self._monitor: HeartbeatMonitor | None = None
        self._command = [sys.executable, "-m", module, *arguments]
        self._environ = environ
        self._now = now
        self._restarted_at: collections.deque[float] = collections.deque(maxlen=MAX_RESTARTS)
        self._process = self._start()

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._process.poll()

    def keep_alive(self) -> int | None:
        """Restart the process if it has died; end one that hangs.

        Returns the exit code for the supervisor when another restart cannot help.
        """
        code = self.poll()
        if code is None and self._monitor is not None and (hang := self._monitor.hang()):
            fate = "its requests fail" if self._is_group else "its requests go on"
            log.error("%s: %s; killed, %s", self.name, hang, fate)
            code = self._end_hung()
        if code is None:
            return None
        if code in FINAL_EXIT_CODES:
            return code
        recent = [at for at in self._restarted_at if self._now() - at < RESTART_WINDOW_S]
        if len(recent) == MAX_RESTARTS:
            log.error(
                "%s: died %d times within %.0f s, not restarted again; the container stops",
                self.name, MAX_RESTARTS + 1, RESTART_WINDOW_S,
            )  # fmt: skip
            return ExitCode.RESTARTS_EXHAUSTED
        self._restarted_at.append(self._now())
        log.error(
            "%s: died (%s); restart %d of %d within %.0f s",
            self.name, cause(code), len(recent) + 1, MAX_RESTARTS, RESTART_WINDOW_S,
        )  # fmt: skip
        self._process = self._start()
        return None

    def terminate(self) -> None:
        """Send SIGTERM: the process finishes its work and exits."""
        self._process.terminate()

    def wait(self, until: float) -> bool:
        """Wait until a (monotonic) time; return whether the process has exited."""
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Kill the process, if it has not exited, with all processes that it started."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _end_hung(self) -> int:
        """Abort the process, which writes its stacks to the log if it can, and kill it."""
        self._process.send_signal(signal.SIGABRT)
        self.wait(time.monotonic() + ABORT_GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if self._is_group else os.kill)(self.pid, signal.SIGKILL)
        return self._process.wait()

    def _start(self) -> Process:
        if self._monitor is not None:
            self._monitor.close()
        if self._heartbeat is None:
            return self._popen(self._environ)
        self._monitor = HeartbeatMonitor(self._heartbeat)
        child_fd = self._monitor.fd
        try:
            return self._popen(self._environ | {HEARTBEAT_FD: str(child_fd)}, child_fd)
        finally:
            self._monitor.close_child_end()

    def _popen(self, environ: dict[str, str], *fds: int) -> Process:
        # Its own session: a terminal's ^C reaches the supervisor only, which then stops in order.
        return subprocess.Popen(
            self._command, env=environ, start_new_session=True, pass_fds=(*self._fds, *fds)
        )


def reap_strangers(children: Iterable[Child]) -> None:
    """Reap orphans that process 1 inherits, but not `children`."""
    if os.getpid() != 1:
        return
    with contextlib.suppress(ChildProcessError):
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None and ended.si_pid not in {child.pid for child in children}:
            os.waitpid(ended.si_pid, 0)


def cause(code: int) -> str:
    """Describe an exit code."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
