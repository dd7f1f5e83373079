"""The measured processes: starts and stops them, talks to them, and reads their CPU time.

Each child leads its own session, so that a terminal's ^C reaches this process only,
which then ends every child.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.load.routes import LoadError
from benchmarks.report.figures import Round, Stream

ROOT = Path(__file__).resolve().parents[2]
MAKE_MODEL = "benchmarks.models.bench_model"
READY_S = 180.0
STOP_S = 30.0


class ChildFailed(Exception):
    """A child left, or never became ready. Its last words are in the message."""


class Child:
    """One process with all that it starts; its stderr goes to a file."""

    def __init__(
        self, name: str, command: list[str], *, answers: bool = False, **environ: str
    ) -> None:
        self._name = name
        self._log = tempfile.TemporaryFile("w+", prefix=f"benchmark-{name}-")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if answers else self._log,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )

    def stop(self) -> None:
        """Ask it to leave, wait, then end what is left of it."""
        family = _family(self.process.pid)
        try:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
        finally:
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            self.process.wait()
            self._log.close()

    def failure(self, what: str) -> ChildFailed:
        """Make the exception that tells what happened, with the end of the log."""
        self._log.seek(0)
        lines = self._log.read().splitlines()[-15:]
        return ChildFailed("\n".join([f"the {self._name} {what}", *lines]))


class Peer:
    """The peer's process, which runs a round for each line that it gets."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.pid = child.process.pid
        self.facts = self._read()

    def run_round(self, prompts: list[list[list[int]]], new_tokens: int) -> Round:
        """Let each client send its prompts, as ids, one after another."""
        answer = self.ask({"prompts": prompts, "new_tokens": new_tokens})
        return Round([Stream(**stream) for stream in answer["streams"]])

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Send a line of JSON and wait for the line that answers it."""
        stdin = self._child.process.stdin
        assert stdin is not None
        print(json.dumps(question), file=stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        stdout = self._child.process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise self._child.failure("process left")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def running_server(model_dir: Path | None, settings: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Start the server; yield its address and process id once /ping is 200."""
    port = _free_port()
    child = Child(
        "server",
        [sys.executable, "-m", "container", "serve"],
        **{"HF_MODEL_ID": str(model_dir or ""), "PORT": str(port), "DTYPE": "bfloat16"} | settings,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _await_ping(child, url)
        yield url, child.process.pid
    except LoadError as error:
        raise child.failure(f"was measured when this happened: {error}") from error
    finally:
        child.stop()


@contextlib.contextmanager
def running_peer(name: str, command: list[str]) -> Iterator[Peer]:
    """Start a peer; yield it once its model is loaded."""
    child = Child(name, command, answers=True)
    try:
        yield Peer(child)
    finally:
        child.stop()


class CpuMeter:
    """Counts the CPU seconds of some process trees, and of everything else on the machine."""

    def __init__(self, trees: dict[str, int]) -> None:
        self._trees = trees
        self._started = time.perf_counter()
        self._before = self._read()

    def cores(self) -> dict[str, float]:
        """Return the cores that each tree has used since the start; `others` is the rest."""
        wall = time.perf_counter() - self._started
        used = {name: (now - self._before[name]) / wall for name, now in self._read().items()}
        machine = used.pop("machine")
        return used | {"others": max(0.0, machine - sum(used.values()))}

    def _read(self) -> dict[str, float]:
        seconds = {name: _cpu_seconds(pid) for name, pid in self._trees.items()}
        own = time.process_time()
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts a guest's time in `user` as well.
        guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        return seconds | {"load": own, "machine": sum(times) - idle - guest}


def make_model(model_dir: Path, *shape: str) -> None:
    """Write the benchmark's model in another process, since this one never loads torch."""
    subprocess.run(
        [sys.executable, "-m", MAKE_MODEL, str(model_dir.resolve()), *shape], check=True, cwd=ROOT
    )


def unwind_on_signals() -> None:
    """Let ^C and SIGTERM unwind this process, so that the children are stopped."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def get_json(url: str) -> dict[str, Any]:
    """Fetch a JSON object."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        value: dict[str, Any] = json.load(answer)
        return value


def _await_ping(child: Child, url: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if child.process.poll() is not None:
            raise child.failure(f"left with code {child.process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/ping", timeout=5):
            return
        time.sleep(0.1)
    raise child.failure(f"was not ready within {READY_S:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _family(pid: int) -> list[psutil.Process]:
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _cpu_seconds(pid: int) -> float:
    seconds = 0.0
    for member in _family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            seconds += times.user + times.system
    return seconds
