"""The supervisor: starts gunicorn and the backends, watches them, restarts and drains them.

Order of stopping: each backend refuses new requests, finishes the running ones and exits, the
clients of other backends first; then gunicorn.
"""

import logging
import os
import signal
import socket
import threading
import time

from container.errors import ExitCode
from container.ipc.heartbeat import HeartbeatLimits
from container.ipc.parent_watch import is_orphan
from container.lifecycle.announcement import announce
from container.lifecycle.backends import start_backends
from container.lifecycle.child import Child, cause, reap_strangers
from container.lifecycle.shutdown import (
    STOP_BUDGET_S,
    StopSchedule,
    drain,
    kill,
    stop_frontends,
)
from container.settings.process_env import PARENT_PID
from container.settings.server import ServerSettings

log = logging.getLogger(__name__)

POLL_S = 0.1
GUNICORN_CONFIG = "python:container.frontend.gunicorn_conf"


class Supervisor:
    """Owns the child processes and the schedule of the stop. `run` returns the exit code."""

    def __init__(
        self, server: ServerSettings, *, is_multi_model: bool, is_for_person: bool = False
    ) -> None:
        """`is_for_person`: a terminal shows the stages of the start, and a summary."""
        self._server = server
        self._is_for_person = is_for_person
        self._is_multi_model = is_multi_model
        self._stopping = threading.Event()
        self._schedule: StopSchedule | None = None

    def watch_signals(self) -> None:
        """Begin the stop at SIGTERM and SIGINT, even if they come before `run`."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._begin_stop())

    def check_budget(self) -> None:
        """Warn if a stop may take longer than SageMaker allows."""
        stop_s = StopSchedule.starting_at(0.0, self._server.drain_s).end_at
        if stop_s > STOP_BUDGET_S:
            log.warning(
                "GRACEFUL_TERMINATION_TIMEOUT=%d: stopping may take %.0f s, but SageMaker kills "
                "the container after 30 s; on SageMaker set 25 at most",
                self._server.drain_s, stop_s,
            )  # fmt: skip

    def run(self, environ: dict[str, str], listener: socket.socket) -> int:
        """Run the children in `environ` until a signal or a failure; return the exit code."""
        frontends = self._start_frontends(environ, listener)
        groups = start_backends(
            environ, HeartbeatLimits(self._server.heartbeat_timeout_s, self._server.step_timeout_s)
        )
        backends = [child for group in groups for child in group]
        threading.Thread(target=self._announce, daemon=True).start()
        try:
            code = self._watch(frontends, backends)
            schedule = self._begin_stop()
            if code is None:
                log.info(
                    "supervisor: stopping; running requests have %d s to finish",
                    self._server.drain_s,
                )
                # The models of a multi-model endpoint are behind gunicorn's worker.
                drain([[frontends]] if self._is_multi_model else groups, schedule)
            return code or 0
        finally:
            kill(backends)
            listener.close()  # so that no client waits in its backlog
            stop_frontends(frontends, self._begin_stop().end_at)

    def _announce(self) -> None:
        announce(self._server, self._stopping, is_for_person=self._is_for_person)

    def _start_frontends(self, environ: dict[str, str], listener: socket.socket) -> Child:
        return Child(
            "HTTP side", "gunicorn", "-c", GUNICORN_CONFIG,
            environ=environ, heartbeat=HeartbeatLimits(self._server.heartbeat_timeout_s, 0.0),
            is_group=False, fds=(listener.fileno(),),
        )  # fmt: skip

    def _watch(self, frontends: Child, backends: list[Child]) -> int | None:
        """Keep the children alive; return the exit code of a failure, None at a stop."""
        code = None
        while code is None and not self._stopping.wait(POLL_S) and self._has_owner():
            reap_strangers([frontends, *backends])
            code = self._check_frontends(frontends)
            for child in backends:
                code = child.keep_alive() if code is None else code
        return code

    def _begin_stop(self) -> StopSchedule:
        """Fix the times of the stop, when the first reason for it appears. Signal-safe."""
        if self._schedule is None:
            self._schedule = StopSchedule.starting_at(time.monotonic(), self._server.drain_s)
            self._stopping.set()
        return self._schedule

    def _has_owner(self) -> bool:
        """Return whether the process lives that started this model's server (multi-model only)."""
        owner = os.environ.get(PARENT_PID)
        return owner is None or not is_orphan(int(owner))

    def _check_frontends(self, frontends: Child) -> int | None:
        """Keep gunicorn alive; return the exit code when it has left by itself.

        If its master is killed, the workers finish their requests. Those of a multi-model endpoint
        take their models with them.
        """
        code = frontends.poll()
        is_killed = code is not None and code < 0
        if code is None or (is_killed and not self._is_multi_model):
            return frontends.keep_alive()
        log.error("HTTP side: gunicorn exited (%s); the container stops", cause(code))
        return ExitCode.FRONTENDS_DIED
