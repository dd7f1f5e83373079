"""The models of a multi-model endpoint: each has a whole server process on a private port.

So every model has its own engine or handler process, its own limits and its own crashes; this
process only starts servers, forwards requests and ends servers. It checks the free memory before it
loads a model: SageMaker answers status 507 by unloading another model and trying again.
"""

import logging
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from container.errors import (
    Conflict,
    InvalidParameter,
    MalformedRequest,
    NotEnoughMemory,
    NotFound,
    Unavailable,
)
from container.files import WEIGHT_SUFFIXES, file_sizes
from container.frontend.generation.offloading import Offload, call
from container.frontend.multi_model.model_server import ModelServer, load_error, start_server
from container.ipc.health import is_healthy

log = logging.getLogger(__name__)

POLL_S = 0.1
STOP_S = 35.0
# Seconds of the drain time in which each model's server exits and its last answers are forwarded.
EXIT_S = 2
# Memory of a model besides its weights: torch, buffers and a small cache.
OVERHEAD_BYTES = 700 * 2**20
WEIGHTS = (*WEIGHT_SUFFIXES, ".pt")
# Files of a folder that are looked at: more are no model.
MAX_FILES = 10_000
# Of a model's name, which is a part of a path.
MAX_NAME = 256
# Characters of names and folders that an error repeats.
MAX_SHOWN = 200
DRAIN = "GRACEFUL_TERMINATION_TIMEOUT"

FreeMemory = Callable[[], int]
StartServer = Callable[[str, str, Mapping[str, str]], ModelServer]


class Models:
    """Owns the servers, by the name that the platform gives."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        free_memory: FreeMemory,
        load_timeout_s: float,
        drain_s: int,
        offload: Offload = call,
        start: StartServer = start_server,
    ) -> None:
        """`drain_s` limits the drain of all models together; `offload` reads folders."""
        self._environ = {**environ, DRAIN: str(max(0, drain_s - EXIT_S))}
        self._is_draining = False
        self._free_memory = free_memory
        self._load_timeout_s = load_timeout_s
        self._offload = offload
        self._start = start
        self._servers: dict[str, ModelServer] = {}
        # The memory that each model that is loading needs, by its name.
        self._loading: dict[str, int] = {}

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
            names = ", ".join(server.name for server in self.listed()) or "none"
            raise NotFound(
                f"model {name[:MAX_SHOWN]!r} is not loaded; loaded are: {names[:MAX_SHOWN]}"
            )
        return server

    def load(self, name: str, url: str) -> None:
        """Start a model's server and wait for it. Raises Conflict, NotEnoughMemory and others."""
        self.check_ready()
        _check_name(name)
        is_known = name in self._servers and not self._servers[name].has_left()
        if is_known or name in self._loading:
            raise Conflict(f"model {name!r} is loaded already, or is being loaded")
        self._loading[name] = 0
        try:
            self._loading[name] = self._check_room(name, Path(url))
            server = self._servers[name] = self._start(name, url, self._environ)
            try:
                self.check_ready()  # a drain that began meanwhile does not know this server
                self._wait(server)
            except BaseException:  # raised again: also what ends this request's greenlet
                self._end(server)
                raise
        finally:
            del self._loading[name]
        log.info("model %s: loaded from %s", name, url)

    def _check_room(self, name: str, folder: Path) -> int:
        """Return the memory that a model needs. Raises MalformedRequest or NotEnoughMemory."""
        needed = self._offload(_needed_bytes, folder)
        if needed is None:
            raise MalformedRequest(
                f"`url`: there is no folder {str(folder)[:MAX_SHOWN]!r}", field="url"
            )
        # Those that are loading have not taken all of theirs yet.
        free = self._free_memory() - sum(self._loading.values())
        if needed > free:
            raise NotEnoughMemory(
                f"model {name!r} needs about {needed >> 20} MiB and {max(0, free) >> 20} MiB are "
                "free"
            )
        return needed

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
                raise load_error(server, code)
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


def _check_name(name: str) -> None:
    """Refuse a name that no path of the API could hold. Raises InvalidParameter."""
    is_sound = name.isprintable() and "/" not in name and name not in ("", ".", "..")
    if not is_sound or len(name) > MAX_NAME:
        raise InvalidParameter(
            f"`model_name` must have 1 to {MAX_NAME} printable characters without `/`, and be "
            "neither `.` nor `..`",
            field="model_name",
        )


def _needed_bytes(folder: Path) -> int | None:
    """Return the memory that the model in a folder needs; None if there is no such folder."""
    if not _is_folder(folder):
        return None
    sizes = file_sizes(folder, MAX_FILES)
    return OVERHEAD_BYTES + sum(size for name, size in sizes if name.endswith(WEIGHTS))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False
