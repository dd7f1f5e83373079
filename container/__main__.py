"""The command line: `python -m container serve`, `chat`, `doctor`, and internal commands."""

import atexit
import faulthandler
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from container import __version__, logs, transformers_index
from container.cli.commands import Commands, chat, doctor
from container.errors import ConfigError, ModelLoadError
from container.garbage import collector_paused
from container.lifecycle.failure import write_failure
from container.lifecycle.terminal import next_steps
from container.settings.page import markdown_page
from container.settings.process_env import HEARTBEAT_FD, RANKS_FOLDER, SUPERVISOR_PID
from container.settings.settings import Settings, describe
from container.text.templates.renderer import TemplateRenderer

if TYPE_CHECKING:
    from collections.abc import Callable

    from container.ipc.backend_server import BackendServer
    from container.ipc.heartbeat import Heartbeat


transformers_index.install()


@click.group(cls=Commands, help="Serve a language model on /ping and /invocations.")
@click.version_option(__version__, package_name=None, prog_name="container")
def main() -> None:
    """Group the commands."""


main.add_command(chat)
main.add_command(doctor)


@main.command()
def serve() -> None:
    """Load the model and serve it. All settings come from the environment."""
    from container.lifecycle.serve import serve as serve_container

    sys.exit(serve_container(_settings()))


@main.command()
def train() -> None:
    """Refuse SageMaker's training mode: this image only serves."""
    raise click.ClickException("this image serves models; it does not train (use `serve`)")


@main.command("settings")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--markdown", is_flag=True, help="A table of all settings, as in docs/.")
def show_settings(as_json: bool, markdown: bool) -> None:
    """Print every setting with the value that the environment gives it; secrets are masked."""
    if markdown:
        click.echo(markdown_page(), nl=False)
        return
    rows = describe(_settings())
    if as_json:
        click.echo(json.dumps({row.name: row.value for row in rows}, indent=2))
        return
    for row in rows:
        mark = " " if row.value == row.default else "*"
        click.echo(f"{mark} {row.name:<32} {row.value:<24} {row.meaning}")


@main.command(hidden=True)
@click.argument("address")
@click.option("--copy", "replica", default=0, help="Which copy of the model it has.")
def engine(address: str, replica: int) -> None:
    """Run an engine process (the supervisor starts it)."""
    renderer = TemplateRenderer()
    renderer.start()  # its process imports while this one does
    # transformers needs scipy for the losses of training.
    with collector_paused(), transformers_index.shut_out("scipy"):
        from container.engine.process import engine_server
        from container.model.engine_loader import load_engine
        from container.model.progress_bars import disable_progress_bars

    settings = _settings()
    disable_progress_bars()
    server = engine_server(
        address,
        lambda progress: load_engine(
            settings,
            progress,
            replica,
            Path(os.environ[RANKS_FOLDER]) / f"model-{replica}",
            renderer,
        ),
        drain_s=settings.server.drain_s,
        parent_pid=int(os.environ[SUPERVISOR_PID]),
        heartbeat=_heartbeat(),
    )
    _run_backend("engine", server)


@main.command(hidden=True)
@click.argument("address")
def handler(address: str) -> None:
    """Run the handler server (the supervisor starts it)."""
    from container.handlers.factories import make_server

    parent_pid = int(os.environ[SUPERVISOR_PID])
    _run_backend("handler", make_server(_settings(), address, parent_pid, _heartbeat()))


@main.command(hidden=True)
@click.argument("address")
@click.argument("name")
@click.argument("parent_pid", type=int)
def handler_worker(address: str, name: str, parent_pid: int) -> None:
    """Run one process with the user's code (the handler server starts it)."""
    from container.handlers.factories import make_worker

    _run("handlers", make_worker(_settings(), address, name, parent_pid).run)
    os._exit(0)  # the handler server has died; threads of user code might never end


@main.command(hidden=True)
@click.argument("address")
def embedder(address: str) -> None:
    """Run the embedder process (the supervisor starts it)."""
    with collector_paused():
        from container.embedding.process import embedder_server
        from container.model.embedder_loader import load_embedder
        from container.model.progress_bars import disable_progress_bars

    settings = _settings()
    disable_progress_bars()
    server = embedder_server(
        address,
        lambda progress: load_embedder(settings, progress),
        drain_s=settings.server.drain_s,
        parent_pid=int(os.environ[SUPERVISOR_PID]),
        heartbeat=_heartbeat(),
    )
    _run_backend("embedder", server)


@main.command(hidden=True)
@click.argument("order")
def rank(order: str) -> None:
    """Run a process that has a share of the model (the engine starts it)."""
    import msgspec

    with collector_paused(), transformers_index.shut_out("scipy"):
        from container.model.parallel.ranks import RankArgs
        from container.model.progress_bars import disable_progress_bars
        from container.model.rank_worker import run_rank

    settings = _settings()
    disable_progress_bars()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rank_args = msgspec.json.decode(order, type=RankArgs)
    _run("rank", lambda: run_rank(settings, rank_args))


def _heartbeat() -> "Heartbeat | None":
    from container.ipc.heartbeat import Heartbeat

    return Heartbeat.from_environ(os.environ, HEARTBEAT_FD)


def _run_backend(name: str, server: "BackendServer") -> NoReturn:
    faulthandler.enable()  # the supervisor aborts a process that hangs, to see where
    signal.signal(signal.SIGTERM, lambda *_: server.drain())
    # A terminal's ^C reaches every process; the supervisor acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _run(name, server.run)
    _exit_at_once(0)


def _run(name: str, run: "Callable[[], None]") -> None:
    log = logging.getLogger(f"container.{name}")
    try:
        run()
    except (ModelLoadError, ConfigError) as error:
        for line in error.message.splitlines():
            log.error("%s", line)
        write_failure(error.message)
        sys.exit(error.exit_code)
    except Exception:
        log.exception("the %s failed", name)
        _exit_at_once(1)


def _exit_at_once(code: int) -> NoReturn:
    """Exit after the last messages and log lines, without taking the interpreter apart.

    That takes seconds with torch and its threads, in which no request is served.
    """
    from container.ipc.backend_server import flush_sockets

    flush_sockets()
    atexit._run_exitfuncs()  # such as those that end other processes
    logging.shutdown()
    os._exit(code)


def _settings() -> Settings:
    try:
        settings = Settings.from_environ(os.environ)
        logs.configure(
            settings.observability.log_level, json_output=settings.observability.json_output
        )
    except ConfigError as error:
        for problem in error.errors:
            click.echo(f"error: {problem}", err=True)
        if logs.is_for_person(json_output=None):
            click.echo(next_steps(), err=True)
        sys.exit(ConfigError.exit_code)
    if settings.placement.num_gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
    return settings


if __name__ == "__main__":
    main()
