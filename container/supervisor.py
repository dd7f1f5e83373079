"""The supervisor: starts the engine and gunicorn, watches both, restarts, drains.

Order of stopping: the engine refuses new requests and finishes the running ones, then it leaves,
then gunicorn.
"""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import TypeAlias

from container import __version__
from container.errors import ConfigError, ModelLoadError
from container.settings import ENGINE_ADDRESS, SUPERVISOR_PID, Settings, shown

log = logging.getLogger(__name__)

Process: TypeAlias = "subprocess.Popen[bytes]"

POLL_S = 0.1
MAX_RESTARTS = 3
# Draining, its slack and this must stay under the 30 s after which SageMaker kills.
STOP_FRONTENDS_S = 3.0
# Torch's threads wait for each other by spinning. With the default they spin so long that one busy
# neighbour process slows a step 15 times; with this, 3 times, and alone as fast (docs/LOG.md).
SPIN_COUNT = "2000"
# Beyond its own limit, for an engine that hangs in a step.
DRAIN_SLACK_S = 1.0
# These will not get better by trying again.
FINAL_EXIT_CODES = (ConfigError.exit_code, ModelLoadError.exit_code)
ENGINE_KEEPS_DYING = 4
FRONTENDS_DIED = 5


class Supervisor:
    """Owns the child processes. `run` returns the exit code."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._restarts = 0

    def run(self) -> int:
        """Serve until a signal or a failure ends it."""
        try:
            self._settings.model_source()
        except ConfigError as error:
            log.error("%s", error.message)
            return error.exit_code
        log.info("version %s; %s", __version__, _changed(self._settings))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        folder = Path(tempfile.mkdtemp(prefix="container-"))
        try:
            return self._serve(_child_environ(folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _serve(self, environ: dict[str, str]) -> int:
        frontends = _start("gunicorn", "-c", "python:container.frontend.gunicorn_conf", env=environ)
        engine = _start_engine(environ)
        threading.Thread(target=self._announce, daemon=True).start()
        code = None
        try:
            while code is None and not self._stopping.wait(POLL_S):
                _reap_strangers({engine.pid, frontends.pid})
                code = self._check_frontends(frontends)
                if code is None and engine.poll() is not None:
                    code = self._judge_engine(engine.returncode)
                    if code is None:
                        engine = _start_engine(environ)
            if code is None:
                self._drain(engine)
            return code or 0
        finally:
            self._stopping.set()
            _stop(engine, 0.0)
            _stop(frontends, STOP_FRONTENDS_S)

    def _check_frontends(self, frontends: Process) -> int | None:
        code = frontends.poll()
        if code is None:
            return None
        hint = f"; is port {self._settings.port} taken?" if code == 1 else ""
        log.error("the HTTP side left (%s)%s", _cause(code), hint)
        return FRONTENDS_DIED

    def _judge_engine(self, code: int) -> int | None:
        """Decide on a dead engine: None to start another, else the exit code to leave with."""
        if code in FINAL_EXIT_CODES:
            return code
        if self._restarts == MAX_RESTARTS:
            log.error("the engine died %d times; giving up", MAX_RESTARTS + 1)
            return ENGINE_KEEPS_DYING
        self._restarts += 1
        log.error(
            "the engine died (%s); restart %d of %d", _cause(code), self._restarts, MAX_RESTARTS
        )
        return None

    def _drain(self, engine: Process) -> None:
        log.info("stopping: running requests get %d s to finish", self._settings.drain_s)
        engine.terminate()
        try:
            engine.wait(self._settings.drain_s + DRAIN_SLACK_S)
        except subprocess.TimeoutExpired:
            log.error("the engine did not finish in time and is killed")

    def _announce(self) -> None:
        """Wait for the first healthy /ping, as SageMaker would, and say how to call the server."""
        base = f"http://localhost:{self._settings.port}"
        started = time.monotonic()
        while not self._stopping.wait(0.2):
            if _is_healthy(base):
                break
        else:
            return
        log.info("ready after %.1f s: %s", time.monotonic() - started, base)
        if sys.stderr.isatty():
            print(f"\nServing on {base}  (Ctrl-C stops it). Try:\n\n  {_example(base)}\n")
        else:
            log.info("try: %s", _example(base))


def _start(module: str, *arguments: str, env: dict[str, str]) -> Process:
    # Its own session: a terminal's ^C reaches the supervisor only, which then stops in order.
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], env=env, start_new_session=True
    )


def _start_engine(environ: dict[str, str]) -> Process:
    return _start("container", "engine", environ[ENGINE_ADDRESS], env=environ)


def _stop(process: Process, grace_s: float) -> None:
    """End a child that may have ended already: politely first, if it gets any time."""
    if grace_s:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    process.kill()
    process.wait()


def _reap_strangers(own: set[int]) -> None:
    """Collect orphans, which fall to process 1; our own children are left to their handles."""
    if os.getpid() != 1:
        return
    with contextlib.suppress(ChildProcessError):
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None and ended.si_pid not in own:
            os.waitpid(ended.si_pid, 0)


def _child_environ(folder: Path) -> dict[str, str]:
    metrics = folder / "metrics"
    metrics.mkdir()
    gentle = {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": SPIN_COUNT}
    return (
        gentle
        | os.environ
        | {
            SUPERVISOR_PID: str(os.getpid()),
            ENGINE_ADDRESS: f"ipc://{folder}/engine",
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
    )


def _changed(settings: Settings) -> str:
    """The settings that differ from their defaults, secrets masked."""
    changed = [f"{row.name}={row.value}" for row in shown(settings) if row.value != row.default]
    return ", ".join(changed) or "all settings have their defaults"


def _is_healthy(base: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base}/ping", timeout=5):
            return True
    except OSError:
        return False


def _cause(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _example(base: str) -> str:
    body = '{"messages": [{"role": "user", "content": "What is deep learning?"}]}'
    return f"curl {base}/invocations -H 'Content-Type: application/json' -d '{body}'"
