"""Real server processes for tests, and how to watch them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / "examples" / "demo-model"
READY_WITHIN_S = 90
EXIT_WITHIN_S = 60


@dataclass
class Server:
    """A `python -m container serve` process and its log."""

    process: "subprocess.Popen[bytes]"
    port: int
    log_path: Path
    started_at: float = field(default_factory=time.monotonic)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def ping(self, timeout: float = 5) -> requests.Response:
        return requests.get(f"{self.url}/ping", timeout=timeout)

    def wait_ready(self) -> None:
        wait_for(self._is_ready, READY_WITHIN_S, lambda: f"never ready:\n{self.log}")

    def engine(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "engine" in _command(child))

    def frontends(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        master = next(child for child in children if "gunicorn" in _command(child))
        return master.children()

    def metric(self, name: str) -> float:
        text = requests.get(f"{self.url}/metrics", timeout=30).text
        lines = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        # A frontend that has just started has not heard of the engine yet.
        return float(lines[0].split()[1]) if lines else float("nan")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(EXIT_WITHIN_S)

    def stop_in_background(self) -> None:
        """SIGTERM; the server exits while the next one starts."""
        self.process.send_signal(signal.SIGTERM)
        _stopping.append(self)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"left with {self.process.returncode}:\n{self.log}"
        try:
            return self.ping().status_code == 200
        except (requests.ConnectionError, requests.Timeout):  # not bound, or a busy machine
            return False


# Servers that have got SIGTERM. Few at a time, since each holds half a gigabyte until it exits.
_stopping: list[Server] = []


def wait_stopped(but_last: int = 0) -> None:
    """Wait for the exit of servers that stop in the background, all but the last ones."""
    while len(_stopping) > but_last:
        _stopping.pop(0).process.wait(EXIT_WITHIN_S)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just died
        return []


def wait_for(condition, within_s: float, explain=lambda: "") -> float:
    """Poll until it holds; the seconds that took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within_s, explain()
        time.sleep(0.02)
    return time.monotonic() - start


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(
    log_path: Path,
    model: str | Path = DEMO_MODEL,
    python: str | Path = sys.executable,
    **settings: str,
) -> Server:
    """Start a server; the caller waits for it and stops it."""
    wait_stopped(but_last=1)
    port = free_port()
    names = ("PATH", "HOME", "TMPDIR", "GOMP_SPINCOUNT")
    inherited = {name: os.environ[name] for name in names if name in os.environ}
    env = inherited | {"HF_MODEL_ID": str(model), "PORT": str(port), "DTYPE": "float32"}
    env |= {"HF_HUB_OFFLINE": "1", "HOST": "127.0.0.1"} | settings
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [python, "-m", "container", "serve"], env=env, stdout=log, stderr=log, cwd=ROOT
        )
    return Server(process, port, log_path)


@contextmanager
def serving(
    log_path: Path,
    model: str | Path = DEMO_MODEL,
    python: str | Path = sys.executable,
    **settings: str,
) -> Iterator[Server]:
    """A ready server for the length of a block, which does not wait for its exit."""
    server = spawn(log_path, model, python, **settings)
    try:
        server.wait_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop_in_background()


class SharedServers:
    """Servers that tests share: one for each model and settings, started at its first use.

    A test may kill an engine or a frontend if it waits until the server is ready again, and may
    stop the server: the next test gets a new one.
    """

    MOST = 4  # each holds half a gigabyte

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._num_started = 0
        self._servers: dict[tuple[str, ...], Server] = {}

    def get(self, model: str | Path = DEMO_MODEL, **settings: str) -> Server:
        """Return a server that is ready."""
        key = (str(model), *(f"{name}={value}" for name, value in sorted(settings.items())))
        server = self._servers.pop(key, None)
        if server is None or server.process.poll() is not None:
            while len(self._servers) >= self.MOST:
                self._stop(next(iter(self._servers)))
            self._num_started += 1
            server = spawn(self._logs / f"{self._num_started}.log", model, **settings)
        self._servers[key] = server  # the last is the one that was used last
        server.wait_ready()
        return server

    def stop(self) -> None:
        """Stop them all."""
        for key in list(self._servers):
            self._stop(key)

    def _stop(self, key: tuple[str, ...]) -> None:
        server = self._servers.pop(key)
        if server.process.poll() is None:
            server.stop_in_background()
