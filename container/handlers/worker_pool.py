"""Start, watch and end the worker processes of a handler server. No user code runs here."""

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

# On SIGABRT a worker writes the stacks of its threads to the log, then dies.
ABORT_GRACE_S = 2.0


@dataclass(slots=True)
class WorkerProcess:
    """One worker: its process, its capacity and its running invocations (id -> deadline)."""

    name: str
    process: "subprocess.Popen[bytes]"
    capacity: int = 0
    running: dict[int, float] = field(default_factory=dict)

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
