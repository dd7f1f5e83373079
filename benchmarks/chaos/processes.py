"""The processes of a running server, by what they do."""

import contextlib

import psutil

# What a process does, and the part of its command line that shows it.
ROLES = {
    "gunicorn master": "container.frontend.gunicorn_conf",
    "engine": "container engine",
    "embedder": "container embedder",
    "handler": "container handler ",
    "handler worker": "container handler-worker",
    "rank": "container rank",
    "grammar process": "container.grammar.fork_server",
    "template process": "container.text.templates.process",
}


def role(process: psutil.Process) -> str:
    """Return what a process of a server does. Raises psutil.Error if it has died."""
    command = " ".join(process.cmdline()) + " "
    name = next((name for name, part in ROLES.items() if part in command), "other")
    parent = process.parent()
    # Forks have the command line of the process that forked them.
    is_fork = parent is not None and parent.cmdline() == process.cmdline()
    if name == "gunicorn master" and is_fork:
        return "HTTP worker"
    if name == "grammar process" and not is_fork:
        return "fork server of grammars"
    return name


def by_role(pid: int) -> dict[str, list[psutil.Process]]:
    """Return the descendants of a supervisor by what they do, zombies excepted."""
    by_name: dict[str, list[psutil.Process]] = {}
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                by_name.setdefault(role(process), []).append(process)
    return by_name


def num_files(processes: list[psutil.Process]) -> int:
    """Count the open files and sockets of these processes."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.num_fds()
    return total


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still exists and is no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
