"""Faults of processes: each kind is killed, or stopped for good, by its id."""

import contextlib
import signal

import psutil

from benchmarks.chaos.processes import by_role, is_alive
from benchmarks.chaos.trial import Effect, Fault, Inject
from tests.support.servers import Server

# Of whole servers, and of one with user code.
SERVING = (
    "engine", "HTTP worker", "gunicorn master", "embedder", "fork server of grammars",
    "grammar process", "template process",
)  # fmt: skip
HANDLERS = ("handler", "handler worker")
RANKS = ("engine", "rank")


class NoSuchRole(Exception):
    """The server has no process of this role."""


def process_faults(roles: tuple[str, ...], where: str = "") -> list[Fault]:
    """Return a kill and a stop for each role; their names end with `where`."""
    return [
        Fault(f"{name} {how}{where}", signal_to(name, number), cuts=name == "HTTP worker")
        for name in roles
        for how, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP))
    ]


def signal_to(name: str, number: signal.Signals) -> Inject:
    """Return what sends a signal to the first process of a role. It raises NoSuchRole."""

    def inject(server: Server) -> Effect | None:
        found = by_role(server.process.pid)
        if name not in found:
            counts = {role: len(processes) for role, processes in found.items()}
            raise NoSuchRole(f"no {name} among {counts}")
        victim = found[name][0]
        victim.send_signal(number)
        if number is signal.SIGKILL:
            return None
        return Effect(lambda: _resume(victim), lambda: not is_alive(victim))

    return inject


def _resume(victim: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        victim.resume()
