"""The supervisor: starts gunicorn and the backends, watches them, restarts and drains them.

Order of stopping: each backend refuses new requests, finishes the running ones and exits, the
clients of other backends first; then gunicorn.
"""

import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from urllib.request import Request

from container import __version__
from container.errors import ConfigError, ModelLoadError
from container.handlers.tasks.selection import needs_engine, served_task
from container.handlers.user_code import find_code
from container.ipc.health import is_healthy
from container.ipc.heartbeat import HeartbeatLimits
from container.ipc.parent_watch import is_orphan
from container.lifecycle.child import Child, cause, reap_strangers
from container.lifecycle.failure import log_end, read_failure
from container.lifecycle.listener import open_listener
from container.lifecycle.shutdown import (
    STOP_BUDGET_S,
    StopSchedule,
    drain,
    kill,
    stop_frontends,
)
from container.lifecycle.startup_report import diagnose
from container.settings.model import EmbeddingSettings, ModelSettings
from container.settings.process_env import (
    ADAPTER_RECORD,
    EMBEDDER_ADDRESS,
    ENGINE_ADDRESS,
    FAILURE_FILE,
    HANDLER_ADDRESS,
    LISTENER_FD,
    PARENT_PID,
    RANKS_FOLDER,
    RESPONSES_FOLDER,
    SESSIONS_FOLDER,
    SUPERVISOR_PID,
)
from container.settings.server import HandlerSettings
from container.settings.settings import Settings, describe
from container.settings.tgi import without_effect

log = logging.getLogger(__name__)

POLL_S = 0.1
# Torch's threads wait for each other by spinning. With the default they spin so long that one busy
# neighbour process slows a step 15 times; with this, 3 times, and alone as fast (docs/LOG.md).
SPIN_COUNT = "2000"
FRONTENDS_DIED = 5
# The backends in the order of their drain: the subcommand that runs one, and the variable with its
# socket's address for it and the frontends. Without the variable there is no such process.
BACKENDS = {"handler": HANDLER_ADDRESS, "engine": ENGINE_ADDRESS, "embedder": EMBEDDER_ADDRESS}


class Supervisor:
    """Owns the child processes. `run` returns the exit code."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._schedule: StopSchedule | None = None

    def run(self) -> int:
        """Serve until a signal or a failure stops the container; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._begin_stop())
        try:
            names = self._backends()
            if "engine" in names:
                self._settings.model.model_source()
        except (ConfigError, ModelLoadError) as error:
            log.error("%s", error.message)
            log_end(error.exit_code, error.message)
            return error.exit_code
        log.info("supervisor: version %s; %s", __version__, _changed(self._settings))
        if self._settings.placement.data_parallel > 1 and "engine" not in names:
            log.warning("supervisor: no engine runs, so DATA_PARALLEL has no effect; unset it")
        if idle := without_effect(os.environ):
            log.info(
                "supervisor: variables without effect (docs/configuration.md): %s", ", ".join(idle)
            )
        self._check_budget()
        for finding in diagnose(self._settings, os.environ):
            log.log(logging.WARNING if finding.is_warning else logging.INFO, "%s", finding.text)
        try:
            folder = Path(tempfile.mkdtemp(prefix="container-"))
        except OSError as error:
            log_end(
                ConfigError.exit_code,
                f"{error}; mount a writable /tmp, or set TMPDIR to a folder that is writable",
            )
            return ConfigError.exit_code
        try:
            return self._serve_in(folder, names)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _serve_in(self, folder: Path, names: tuple[str, ...]) -> int:
        server = self._settings.server
        try:
            listener = open_listener(server.host, server.port)
        except OSError as error:
            log_end(
                FRONTENDS_DIED,
                f"{server.host}:{server.port} (HOST, PORT) cannot be bound: {error.strerror}",
            )
            return FRONTENDS_DIED
        environ = _child_environ(folder, names, self._settings.placement.data_parallel)
        code = self._serve(environ | {LISTENER_FD: str(listener.fileno())}, listener)
        if code:
            log_end(code, read_failure(environ))
        return code

    def _backends(self) -> tuple[str, ...]:
        settings = self._settings
        if settings.sagemaker.is_multi_model:
            return ()
        return needed_backends(settings.model, settings.handlers, settings.embedding)

    def _serve(self, environ: dict[str, str], listener: socket.socket) -> int:
        config = "python:container.frontend.gunicorn_conf"
        server = self._settings.server
        limits = HeartbeatLimits(server.heartbeat_timeout_s, server.step_timeout_s)
        master_limits = HeartbeatLimits(server.heartbeat_timeout_s, 0.0)
        frontends = Child(
            "HTTP side", "gunicorn", "-c", config,
            environ=environ, heartbeat=master_limits, is_group=False, fds=(listener.fileno(),),
        )  # fmt: skip
        groups = [
            _start(name, environ[variable].split(","), environ, limits)
            for name, variable in BACKENDS.items()
            if variable in environ
        ]
        behind = [child for group in groups for child in group]
        threading.Thread(target=self._announce, daemon=True).start()
        code = None
        try:
            while code is None and not self._stopping.wait(POLL_S) and self._has_owner():
                reap_strangers([frontends, *behind])
                code = self._check_frontends(frontends)
                for child in behind:
                    code = child.keep_alive() if code is None else code
            schedule = self._begin_stop()
            if code is None:
                log.info(
                    "supervisor: stopping; running requests have %d s to finish",
                    self._settings.server.drain_s,
                )
                # The models of a multi-model endpoint are behind gunicorn's worker.
                drain(
                    [[frontends]] if self._settings.sagemaker.is_multi_model else groups, schedule
                )
            return code or 0
        finally:
            kill(behind)
            listener.close()  # so that nobody waits in its backlog
            stop_frontends(frontends, self._begin_stop().end_at)

    def _begin_stop(self) -> StopSchedule:
        """Fix the times of the stop, when the first reason for it appears. Signal-safe."""
        if self._schedule is None:
            drain_s = self._settings.server.drain_s
            self._schedule = StopSchedule.starting_at(time.monotonic(), drain_s)
            self._stopping.set()
        return self._schedule

    def _check_budget(self) -> None:
        stop_s = StopSchedule.starting_at(0.0, self._settings.server.drain_s).end_at
        if stop_s > STOP_BUDGET_S:
            log.warning(
                "GRACEFUL_TERMINATION_TIMEOUT=%d: stopping may take %.0f s, but SageMaker kills "
                "the container after 30 s; on SageMaker set 25 at most",
                self._settings.server.drain_s, stop_s,
            )  # fmt: skip

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
        if code is None or (is_killed and not self._settings.sagemaker.is_multi_model):
            return frontends.keep_alive()
        log.error("HTTP side: gunicorn exited (%s); the container stops", cause(code))
        return FRONTENDS_DIED

    def _announce(self) -> None:
        """Wait for the first healthy /ping, as SageMaker does, and log how to call the server."""
        base = f"http://localhost:{self._settings.server.port}"
        started = time.monotonic()
        while not self._stopping.wait(0.2):
            if is_healthy(self._settings.server.port):
                break
        else:
            return
        log.info("supervisor: ready after %.1f s: %s", time.monotonic() - started, base)
        if reasons := _fallbacks(base, self._settings.server.api_key):
            log.warning("supervisor: serving on a slow path: %s", "; ".join(reasons))
        if sys.stderr.isatty():
            page = f"{base}/ui in a browser, or" if self._settings.server.has_ui else "Try"
            print(f"\nServing on {base}  (Ctrl-C stops it).\n{page}:\n\n  {_example(base)}\n")
        else:
            log.info("try: %s", _example(base))


def needed_backends(
    model: ModelSettings, handlers: HandlerSettings, embedding: EmbeddingSettings
) -> tuple[str, ...]:
    """Return the BACKENDS that a model needs. Raises ModelLoadError or ConfigError."""
    code = find_code(handlers, model.model_id)
    if code is None and embedding.is_for_task(model.task):
        return ("embedder",)
    extra = ("embedder",) if embedding.embedding_model_id else ()
    if code is not None and code.loads_own_model:
        return ("handler", *extra)
    task = served_task(model)
    if task is not None or code is not None:
        return ("handler", "engine", *extra) if needs_engine(task) else ("handler", *extra)
    return ("engine", *extra) if model.has_model or not extra else extra


def _start(
    name: str, addresses: list[str], environ: dict[str, str], limits: HeartbeatLimits
) -> list[Child]:
    """Start a process for each address; only the engine may have several."""
    if len(addresses) == 1:
        return [Child(name, "container", name, addresses[0], environ=environ, heartbeat=limits)]
    threads = str(max(1, (os.cpu_count() or 1) // len(addresses)))
    children = []
    for replica, address in enumerate(addresses):
        replica_environ = {ADAPTER_RECORD: f"{environ[ADAPTER_RECORD]}.{replica}"}
        replica_environ |= {} if "OMP_NUM_THREADS" in environ else {"OMP_NUM_THREADS": threads}
        arguments = (address, "--copy", str(replica))
        children.append(
            Child(
                f"{name} {replica}",
                "container",
                name,
                *arguments,
                environ=environ | replica_environ,
                heartbeat=limits,
            )
        )
    return children


def _child_environ(folder: Path, names: tuple[str, ...], replicas: int) -> dict[str, str]:
    metrics = folder / "metrics"
    metrics.mkdir()
    engines = [f"ipc://{folder}/engine-{replica}" for replica in range(replicas)]
    gentle = {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": SPIN_COUNT}
    return (
        gentle
        | os.environ
        | {
            SUPERVISOR_PID: str(os.getpid()),
            ADAPTER_RECORD: str(folder / "adapters.json"),
            RESPONSES_FOLDER: str(folder / "responses"),
            SESSIONS_FOLDER: str(folder / "sessions"),
            RANKS_FOLDER: str(folder),
            FAILURE_FILE: str(folder / "failure"),
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        | {BACKENDS[name]: f"ipc://{folder}/{name}" for name in names}
        | ({ENGINE_ADDRESS: ",".join(engines)} if "engine" in names else {})
    )


def _changed(settings: Settings) -> str:
    """List the settings that differ from their defaults, secrets masked."""
    changed = [f"{row.name}={row.value}" for row in describe(settings) if row.value != row.default]
    return ", ".join(changed) or "all settings have their defaults"


def _fallbacks(base: str, api_key: str | None) -> list[str]:
    """Return the slow paths that the server reports; none if it reports nothing."""
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        with urllib.request.urlopen(
            Request(f"{base}/info", headers=headers), timeout=5
        ) as response:
            fallbacks: list[str] = json.load(response).get("fallbacks", [])
    except (OSError, ValueError):  # no language model, or it has just died
        return []
    return fallbacks


def _example(base: str) -> str:
    body = '{"messages": [{"role": "user", "content": "What is deep learning?"}]}'
    return f"curl {base}/invocations -H 'Content-Type: application/json' -d '{body}'"
