"""Limits of a worker process: how long it may be stopped, and how much memory it may take."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from container.handlers.worker_pool import CHECK_INTERVAL_S, WorkerLimits, WorkerProcess
from tests.support.servers import wait_for

UNLIMITED = WorkerLimits(stopped_s=0, memory_bytes=2**50)
EATS = "held = bytearray(b'x') * (200 << 20); print(flush=True); input()"
MAPS = """
import mmap, sys
mapped = mmap.mmap(open(sys.argv[1], "rb").fileno(), 0, prot=mmap.PROT_READ)
sum(mapped[::4096])
print(flush=True); input()
"""


@contextmanager
def running(*command: str) -> Iterator[WorkerProcess]:
    """A process that has written its first line."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield WorkerProcess("worker-0", process)
    finally:
        process.kill()
        process.communicate()


def _later(worker: WorkerProcess, limits: WorkerLimits) -> str | None:
    time.sleep(CHECK_INTERVAL_S + 0.05)
    return worker.breach(limits)


def test_a_stopped_process_is_ended_at_its_limit() -> None:
    limits = WorkerLimits(stopped_s=1, memory_bytes=2**50)
    with running(sys.executable, "-c", "print(flush=True); input()") as worker:
        assert worker.breach(limits) is None
        worker.process.send_signal(signal.SIGSTOP)
        assert _later(worker, limits) is None
        worker.process.send_signal(signal.SIGCONT)
        assert _later(worker, limits) is None  # what it was stopped for before does not count
        worker.process.send_signal(signal.SIGSTOP)
        reasons: list[str] = []
        wait_for(lambda: reasons.append(worker.breach(limits) or "") or reasons[-1], 20)
        assert reasons[-1] == "was stopped for more than 1 s (HEARTBEAT_TIMEOUT)"
        assert _later(worker, UNLIMITED) is None
        worker.end()
        assert worker.process.poll() == -signal.SIGKILL


def test_memory_of_its_own_counts(tmp_path) -> None:
    limits = WorkerLimits(stopped_s=0, memory_bytes=150 << 20)
    with running(sys.executable, "-c", EATS) as worker:
        assert worker.breach(limits) == "took more than 150 MiB of memory (HANDLER_MEMORY)"
        assert _later(worker, UNLIMITED) is None
    weights = tmp_path / "weights"
    weights.write_bytes(b"x" * (200 << 20))
    with running(sys.executable, "-c", MAPS, str(weights)) as worker:
        assert worker.breach(limits) is None


def test_a_process_that_has_died_exceeds_no_limit() -> None:
    with running(sys.executable, "-c", "print(flush=True)") as worker:
        worker.process.wait()
        assert worker.breach(WorkerLimits(1, 1)) is None
