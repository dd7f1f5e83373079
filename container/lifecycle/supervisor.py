"""The supervisor: starts gunicorn and what works behind it, watches all, restarts, drains.

Order of stopping: each backend refuses new requests, finishes the running ones and leaves, those
first that ask others for something; then gunicorn.
"""

import json
import logging
import os
import shutil
import signal
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
from container.lifecycle.child import Child, cause, reap_strangers
from container.lifecycle.startup_report import diagnose
from container.settings.process_env import (
    ADAPTER_RECORD,
    EMBEDDER_ADDRESS,
    ENGINE_ADDRESS,
    HANDLER_ADDRESS,
    PARENT_PID,
    RANKS_FOLDER,
    SESSIONS_FOLDER,
    SUPERVISOR_PID,
)
from container.settings.settings import Settings, describe
from container.settings.tgi import without_effect

log = logging.getLogger(__name__)

POLL_S = 0.1
# Draining, its slack and this must stay under the 30 s after which SageMaker kills.
STOP_FRONTENDS_S = 3.0
# Torch's threads wait for each other by spinning. With the default they spin so long that one busy
# neighbour process slows a step 15 times; with this, 3 times, and alone as fast (docs/LOG.md).
SPIN_COUNT = "2000"
FRONTENDS_DIED = 5
# What may work behind the frontends, in the order in which it is drained: the subcommand that
# runs it, and the variable that tells it and the frontends where its socket is. A frontend that
# does not find the variable knows that there is no such process.
BACKENDS = {"handler": HANDLER_ADDRESS, "engine": ENGINE_ADDRESS, "embedder": EMBEDDER_ADDRESS}


class Supervisor:
    """Owns the child processes. `run` returns the exit code."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()

    def run(self) -> int:
        """Serve until a signal or a failure ends it."""
        try:
            names = () if self._settings.sagemaker.is_multi_model else backends(self._settings)
            if "engine" in names:
                self._settings.model.model_source()
        except (ConfigError, ModelLoadError) as error:
            log.error("%s", error.message)
            return error.exit_code
        log.info("version %s; %s", __version__, _changed(self._settings))
        if self._settings.placement.data_parallel > 1 and "engine" not in names:
            log.warning("DATA_PARALLEL has no effect: no language model is served by the engine")
        if idle := without_effect(os.environ):
            log.info("without effect here (docs/configuration.md says why): %s", ", ".join(idle))
        for finding in diagnose(self._settings, os.environ):
            log.log(logging.WARNING if finding.is_warning else logging.INFO, "%s", finding.text)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        folder = Path(tempfile.mkdtemp(prefix="container-"))
        try:
            return self._serve(
                _child_environ(folder, names, self._settings.placement.data_parallel)
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _serve(self, environ: dict[str, str]) -> int:
        config = "python:container.frontend.gunicorn_conf"
        frontends = Child("HTTP side", "gunicorn", "-c", config, environ=environ)
        groups = [
            _start(name, environ[variable].split(","), environ)
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
            if code is None:
                self._drain(groups)
            return code or 0
        finally:
            self._stopping.set()
            for child in behind:
                child.stop()
            frontends.stop(STOP_FRONTENDS_S)

    def _has_owner(self) -> bool:
        """A model's server on a multi-model endpoint ends with the process that started it."""
        owner = os.environ.get(PARENT_PID)
        return owner is None or os.getppid() == int(owner)

    def _check_frontends(self, frontends: Child) -> int | None:
        code = frontends.poll()
        if code is None:
            return None
        hint = f"; is port {self._settings.server.port} taken?" if code == 1 else ""
        log.error("the HTTP side left (%s)%s", cause(code), hint)
        return FRONTENDS_DIED

    def _drain(self, groups: list[list[Child]]) -> None:
        log.info("stopping: running requests get %d s to finish", self._settings.server.drain_s)
        until = time.monotonic() + self._settings.server.drain_s
        for children in groups:
            for child in children:
                child.begin_drain()
            for child in children:
                child.end_drain(until)

    def _announce(self) -> None:
        """Wait for the first healthy /ping, as SageMaker would, and say how to call the server."""
        base = f"http://localhost:{self._settings.server.port}"
        started = time.monotonic()
        while not self._stopping.wait(0.2):
            if _is_healthy(base):
                break
        else:
            return
        log.info("ready after %.1f s: %s", time.monotonic() - started, base)
        if reasons := _fallbacks(base, self._settings.server.api_key):
            log.warning("ready, but on a slow path: %s", "; ".join(reasons))
        if sys.stderr.isatty():
            print(f"\nServing on {base}  (Ctrl-C stops it). Try:\n\n  {_example(base)}\n")
        else:
            log.info("try: %s", _example(base))


def backends(settings: Settings) -> tuple[str, ...]:
    """Which of BACKENDS the settings call for. Raises ModelLoadError or ConfigError."""
    code = find_code(settings.handlers, settings.model.model_id)
    if code is None and settings.is_embedding_task:
        return ("embedder",)
    extra = ("embedder",) if settings.embedding.embedding_model_id else ()
    if code is not None and code.loads_own_model:
        return ("handler", *extra)
    task = served_task(settings.model)
    if task is not None or code is not None:
        return ("handler", "engine", *extra) if needs_engine(task) else ("handler", *extra)
    return ("engine", *extra) if settings.model.has_model or not extra else extra


def _start(name: str, addresses: list[str], environ: dict[str, str]) -> list[Child]:
    """Start a process for each address; only of the engine there may be several."""
    if len(addresses) == 1:
        return [Child(name, "container", name, addresses[0], environ=environ)]
    threads = str(max(1, (os.cpu_count() or 1) // len(addresses)))
    children = []
    for replica, address in enumerate(addresses):
        own = {ADAPTER_RECORD: f"{environ[ADAPTER_RECORD]}.{replica}"}
        own |= {} if "OMP_NUM_THREADS" in environ else {"OMP_NUM_THREADS": threads}
        arguments = (address, "--copy", str(replica))
        children.append(
            Child(f"{name} {replica}", "container", name, *arguments, environ=environ | own)
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
            SESSIONS_FOLDER: str(folder / "sessions"),
            RANKS_FOLDER: str(folder),
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        | {BACKENDS[name]: f"ipc://{folder}/{name}" for name in names}
        | ({ENGINE_ADDRESS: ",".join(engines)} if "engine" in names else {})
    )


def _changed(settings: Settings) -> str:
    """The settings that differ from their defaults, secrets masked."""
    changed = [f"{row.name}={row.value}" for row in describe(settings) if row.value != row.default]
    return ", ".join(changed) or "all settings have their defaults"


def _is_healthy(base: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base}/ping", timeout=5):
            return True
    except OSError:
        return False


def _fallbacks(base: str, api_key: str | None) -> list[str]:
    """Ask the server for what makes it slower than possible; nothing where it does not say."""
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        with urllib.request.urlopen(Request(f"{base}/info", headers=headers), timeout=5) as answer:
            fallbacks: list[str] = json.load(answer).get("fallbacks", [])
    except (OSError, ValueError):  # no language model, or gone again
        return []
    return fallbacks


def _example(base: str) -> str:
    body = '{"messages": [{"role": "user", "content": "What is deep learning?"}]}'
    return f"curl {base}/invocations -H 'Content-Type: application/json' -d '{body}'"
