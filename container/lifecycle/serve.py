"""The composition root of the container's first process: settings in, an exit code out."""

import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from container import __version__, logs
from container.errors import ConfigError, ExitCode, ModelLoadError
from container.lifecycle.backends import child_environ, needed_backends
from container.lifecycle.failure import log_end, read_failure
from container.lifecycle.listener import open_listener
from container.lifecycle.startup_report import machine_lines, model_lines, variable_lines
from container.lifecycle.supervisor import Supervisor
from container.lifecycle.terminal import next_steps
from container.machine import visible_gpus
from container.settings.process_env import LISTENER_FD
from container.settings.settings import Settings, describe
from container.settings.tgi import without_effect

log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serve until a signal or a failure stops the container; return the exit code."""
    is_for_person = logs.is_for_person(json_output=settings.observability.json_output)
    code = _serve(settings, is_for_person=is_for_person)
    if code and is_for_person:
        sys.stderr.write(next_steps())
    return code


def _serve(settings: Settings, *, is_for_person: bool) -> int:
    supervisor = Supervisor(
        settings.server,
        is_multi_model=settings.sagemaker.is_multi_model,
        is_for_person=is_for_person,
    )
    supervisor.watch_signals()
    try:
        names = _backends(settings)
    except (ConfigError, ModelLoadError) as error:
        log.error("%s", error.message)
        log_end(error.exit_code, error.message)
        return error.exit_code
    _report(settings, names)
    supervisor.check_budget()
    try:
        folder = Path(tempfile.mkdtemp(prefix="container-"))
    except OSError as error:
        log_end(
            ExitCode.WRONG_SETTINGS,
            f"{error}; mount a writable /tmp, or set TMPDIR to a folder that is writable",
        )
        return ExitCode.WRONG_SETTINGS
    try:
        environ = child_environ(folder, names, settings.placement.data_parallel)
        return _serve_at(settings.server.host, settings.server.port, supervisor, environ)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _serve_at(host: str, port: int, supervisor: Supervisor, environ: dict[str, str]) -> int:
    try:
        listener = open_listener(host, port)
    except OSError as error:
        log_end(
            ExitCode.FRONTENDS_DIED,
            f"{host}:{port} (HOST, PORT) cannot be bound: {error.strerror}",
        )
        return ExitCode.FRONTENDS_DIED
    code = supervisor.run(environ | {LISTENER_FD: str(listener.fileno())}, listener)
    if code:
        log_end(code, read_failure(environ))
    return code


def _backends(settings: Settings) -> tuple[str, ...]:
    """Return the names of the backends. Raises ModelLoadError or ConfigError."""
    if settings.sagemaker.is_multi_model:
        return ()
    names = needed_backends(settings.model, settings.handlers, settings.embedding)
    if "engine" in names:
        settings.model.model_source()
    return names


def _report(settings: Settings, names: tuple[str, ...]) -> None:
    """Log the settings, and what they and the machine mean for this model."""
    log.info("supervisor: version %s; %s", __version__, _changed(settings))
    if settings.placement.data_parallel > 1 and "engine" not in names:
        log.warning("supervisor: no engine runs, so DATA_PARALLEL has no effect; unset it")
    if idle := without_effect(os.environ):
        log.info(
            "supervisor: variables without effect (docs/configuration.md): %s", ", ".join(idle)
        )
    for line in (
        *model_lines(settings.model, settings.embedding, settings.handlers),
        *machine_lines(settings.placement.num_gpus, visible_gpus()),
        *variable_lines(os.environ),
    ):
        log.log(logging.WARNING if line.is_warning else logging.INFO, "%s", line.text)


def _changed(settings: Settings) -> str:
    """List the settings that differ from their defaults, secrets masked."""
    changed = [f"{row.name}={row.value}" for row in describe(settings) if row.value != row.default]
    return ", ".join(changed) or "all settings have their defaults"
