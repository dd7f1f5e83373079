"""The models of a multi-model endpoint: each has a whole server process on a private port.

So every model has its own engine or handler process, its own limits and its own crashes; this
process only starts servers, forwards requests and ends servers. It checks the free memory before it
loads a model: SageMaker answers status 507 by unloading another model and trying again.
"""

import collections
import contextlib
import http.client
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from container.errors import (
    Conflict,
    MalformedRequest,
    NotEnoughMemory,
    NotFound,
    ServingError,
    Unavailable,
)
from container.ipc.health import is_healthy
from container.settings.process_env import PARENT_PID

log = logging.getLogger(__name__)

POLL_S = 0.1
STOP_S = 35.0
# Seconds of the drain time in which each model's server exits and its last answers are forwarded.
EXIT_S = 2
# Memory of a model besides its weights: torch, buffers and a small cache.
OVERHEAD_BYTES = 700 * 2**20
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")
# Files of a folder that are looked at: more are no model.
MAX_FILES = 10_000
MAX_LOG_LINES = 30
EXIT_WITHOUT_MEMORY = -signal.SIGKILL  # the exit code when the kernel is out of memory
DRAIN = "GRACEFUL_TERMINATION_TIMEOUT"
# Variables of this process that a model's server must not inherit.
OWN = ("SAGEMAKER_MULTI_MODEL", "SAGEMAKER_BIND_TO_PORT", "HF_MODEL_ID", "MODEL_ID", "PORT", "HOST")

FreeMemory = Callable[[], int]


@dataclass(slots=True)
class ModelServer:
    """One model's server process."""

    name: str
    url: str
    port: int
    process: "subprocess.Popen[str]"
    last_lines: "collections.deque[str]"
    is_ready: bool = False

    def has_left(self) -> bool:
        """Whether the process has exited."""
        return self.process.poll() is not None

    def reason(self) -> str:
        """Return the last error in its log."""
        for line in reversed(self.last_lines):
            record = _parsed(line)
            if record.get("level") == "error":
                return str(record.get("message"))[:500]
        return f"its server exited with code {self.process.returncode}"


class Models:
    """Owns the servers, by the name that the platform gives."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        free_memory: FreeMemory,
        load_timeout_s: float,
        drain_s: int,
    ) -> None:
        """`drain_s` limits the drain of all models together."""
        self._environ = {**environ, DRAIN: str(max(0, drain_s - EXIT_S))}
        self._is_draining = False
        self._free_memory = free_memory
        self._load_timeout_s = load_timeout_s
        self._servers: dict[str, ModelServer] = {}

    def check_ready(self) -> None:
        """Raise Unavailable once the drain has begun."""
        if self._is_draining:
            raise Unavailable("the server is shutting down", retry_after_s=30)

    def listed(self) -> list[ModelServer]:
        """Return the loaded models, in loading order."""
        return [server for server in list(self._servers.values()) if self._is_alive(server)]

    def find(self, name: str) -> ModelServer:
        """Return a loaded model. Raises NotFound, or Unavailable during the drain."""
        self.check_ready()
        server = self._servers.get(name)
        if server is None or not self._is_alive(server):
            names = ", ".join(self._servers) or "none"
            raise NotFound(f"model {name!r} is not loaded; loaded are: {names}")
        return server

    def load(self, name: str, url: str) -> None:
        """Start a model's server and wait for it. Raises Conflict, NotEnoughMemory and others."""
        self.check_ready()
        if name in self._servers and not self._servers[name].has_left():
            raise Conflict(f"model {name!r} is loaded already")
        folder = Path(url)
        if not _is_folder(folder):
            raise MalformedRequest(f"`url`: there is no folder {url!r}", field="url")
        needed, free = _needed_bytes(folder), self._free_memory()
        if needed > free:
            raise NotEnoughMemory(
                f"model {name!r} needs about {needed >> 20} MiB and {free >> 20} MiB are free"
            )
        server = self._servers[name] = _start(name, url, self._environ)
        try:
            self._wait(server)
        except BaseException:
            self._end(server)
            raise
        log.info("model %s: loaded from %s", name, url)

    def unload(self, name: str) -> None:
        """End a model's server and wait until its memory is free. Raises NotFound."""
        self._end(self.find(name))
        log.info("model %s: unloaded", name)

    def drain(self, until: float) -> None:
        """Refuse new requests; let all servers finish theirs and exit until a (monotonic) time."""
        self._is_draining = True
        for server in list(self._servers.values()):
            server.process.terminate()
        for server in list(self._servers.values()):
            self._end(server, until)

    def close(self) -> None:
        """End all servers."""
        self.drain(time.monotonic() + STOP_S)

    def _is_alive(self, server: ModelServer) -> bool:
        if not server.has_left():
            return server.is_ready
        if server.is_ready and not self._is_draining:
            log.error("model %s: its server exited: %s; not loaded", server.name, server.reason())
            self._servers.pop(server.name, None)
        return False

    def _wait(self, server: ModelServer) -> None:
        until = time.monotonic() + self._load_timeout_s
        while not is_healthy(server.port):
            code = server.process.poll()
            if code is not None:
                self.check_ready()
                raise _load_error(server, code)
            if time.monotonic() > until:
                raise Unavailable(f"model {server.name!r} did not load in time")
            time.sleep(POLL_S)
        server.is_ready = True

    def _end(self, server: ModelServer, until: float | None = None) -> None:
        self._servers.pop(server.name, None)
        server.process.terminate()
        wait_s = STOP_S if until is None else max(0.0, until - time.monotonic())
        try:
            server.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


class ProxiedResponse:
    """The response of a model's server, forwarded chunk by chunk."""

    def __init__(
        self, server: ModelServer, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port)
        try:
            self._connection.request(method, path, body, headers)
            self._response = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            if server.has_left():
                raise NotFound(f"model {server.name!r} died and is not loaded any more") from error
            raise Unavailable(f"model {server.name!r} does not answer: {error}") from error
        self.status = self._response.status
        self.headers = self._response.getheaders()

    def chunks(self) -> Iterator[bytes]:
        """Yield the body in the chunks in which it arrives."""
        with closing(self._connection):
            while chunk := self._response.read1(65_536):
                yield chunk

    def close(self) -> None:
        """Close the connection, so that the model's server aborts the request."""
        self._connection.close()


def _start(name: str, url: str, environ: Mapping[str, str]) -> ModelServer:
    port = _free_port()
    own = {key: value for key, value in environ.items() if key not in OWN}
    own = {key: value for key, value in own.items() if not key.startswith("CONTAINER_")}
    own |= {
        "HF_MODEL_ID": url, "PORT": str(port), "HOST": "127.0.0.1", "JSON_OUTPUT": "true",
        PARENT_PID: str(os.getpid()),
    }  # fmt: skip
    own.pop("PROMETHEUS_MULTIPROC_DIR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "container", "serve"], env=own, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    server = ModelServer(name, url, port, process, collections.deque(maxlen=MAX_LOG_LINES))
    threading.Thread(target=_pass_log, args=(server,), daemon=True).start()
    return server


def _pass_log(server: ModelServer) -> None:
    """Forward a model's log lines to this process's log, with its name."""
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.last_lines.append(line)
        record = _parsed(line)
        written = json.dumps({"model": server.name} | record) + "\n" if record else line
        sys.stderr.write(written)


def _load_error(server: ModelServer, code: int) -> ServingError:
    reason = server.reason()
    if code == EXIT_WITHOUT_MEMORY or "memory" in reason.lower() or "signal 9" in reason:
        return NotEnoughMemory(f"model {server.name!r} found no memory: {reason}")
    return MalformedRequest(f"model {server.name!r} cannot be loaded: {reason}")


def _needed_bytes(folder: Path) -> int:
    needed = OVERHEAD_BYTES
    paths = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    for path in itertools.islice(paths, MAX_FILES):
        if path.suffix in WEIGHTS:
            with contextlib.suppress(OSError):  # a link to nowhere, for the model's server to name
                needed += path.stat().st_size
    return needed


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _parsed(line: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
