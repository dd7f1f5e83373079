"""The worker processes of a handler server: started, watched, ended. No user code runs here."""

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

# A worker that is told to end by SIGABRT writes where its threads are, then dies.
ABORT_GRACE_S = 2.0


@dataclass(slots=True)
class WorkerProcess:
    """One worker: its process, how much it takes, and what it is doing (id -> time limit)."""

    name: str
    process: "subprocess.Popen[bytes]"
    capacity: int = 0
    running: dict[int, float] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        """Whether it has loaded the model."""
        return self.capacity > 0

    @property
    def num_free(self) -> int:
        """Invocations that it could take now."""
        return self.capacity - len(self.running)

    def overdue(self) -> int | None:
        """An invocation that has run longer than it may."""
        now = time.monotonic()
        return next((request_id for request_id, until in self.running.items() if now > until), None)

    def end(self) -> None:
        """End it, however it hangs; its threads' places go to the log."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGABRT)
            try:
                self.process.wait(ABORT_GRACE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


def start_worker(number: int, address: str) -> WorkerProcess:
    """Start one; it connects to the address and says when it is ready."""
    name = f"worker-{number}-{os.urandom(4).hex()}"
    command = [sys.executable, "-m", "container", "handler-worker", address, name]
    command += [str(os.getpid())]
    return WorkerProcess(name, subprocess.Popen(command))
