"""Start, watch and end the worker processes of a handler server. No user code runs here."""

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import psutil

log = logging.getLogger(__name__)

# On SIGABRT a worker writes the stacks of its threads to the log, then dies.
ABORT_GRACE_S = 2.0
# How often the state and the memory of a process are read.
CHECK_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """The limits of a worker process: seconds that it may be stopped (0: any), bytes of memory."""

    stopped_s: float
    memory_bytes: int


@dataclass(slots=True)
class WorkerProcess:
    """One worker: its process, its capacity and its running invocations (id -> deadline)."""

    name: str
    process: "subprocess.Popen[bytes]"
    capacity: int = 0
    running: dict[int, float] = field(default_factory=dict)
    _next_check: float = 0.0
    _stopped_since: float | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the worker has loaded the model."""
        return self.capacity > 0

    @property
    def num_free(self) -> int:
        """How many more invocations fit."""
        return self.capacity - len(self.running)

    def overdue(self) -> int | None:
        """Return the id of an invocation past its deadline, or None."""
        now = time.monotonic()
        return next((request_id for request_id, until in self.running.items() if now > until), None)

    def breach(self, limits: WorkerLimits) -> str | None:
        """Return which limit is exceeded, or None; checks at most every CHECK_INTERVAL_S."""
        now = time.monotonic()
        if now < self._next_check:
            return None
        self._next_check = now + CHECK_INTERVAL_S
        try:
            process = psutil.Process(self.process.pid)
            is_stopped = process.status() == psutil.STATUS_STOPPED
            memory = process.memory_info()
        except psutil.Error:
            return None  # it has just died
        self._stopped_since = (self._stopped_since or now) if is_stopped else None
        if self._stopped_since is not None and 0 < limits.stopped_s < now - self._stopped_since:
            return f"was stopped for more than {limits.stopped_s:.0f} s (HEARTBEAT_TIMEOUT)"
        # Pages of files, such as weights that are mapped, can be taken from it without harm.
        if memory.rss - getattr(memory, "shared", 0) > limits.memory_bytes:
            return f"took more than {limits.memory_bytes >> 20} MiB of memory (HANDLER_MEMORY)"
        return None

    def end(self) -> None:
        """End the process, even if it hangs; the stacks of its threads go to the log."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGABRT)
            try:
                self.process.wait(ABORT_GRACE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


def start_worker(number: int, address: str) -> WorkerProcess:
    """Start a worker process; it connects to the address and sends WorkerReady."""
    name = f"worker-{number}-{os.urandom(4).hex()}"
    command = [sys.executable, "-m", "container", "handler-worker", address, name]
    command += [str(os.getpid())]
    return WorkerProcess(name, subprocess.Popen(command))


def exit_cause(code: int) -> str:
    """Say how a process ended."""
    if code == -signal.SIGKILL:
        return "signal 9, mostly the kernel's for lack of memory"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
