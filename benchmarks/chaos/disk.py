"""A full disk: the server's temporary folder is a small tmpfs, which a file fills. Needs root."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from benchmarks.chaos.faults import signal_to
from benchmarks.chaos.trial import Effect, Fault, Inject
from tests.support.servers import Server

SIZE = "64m"
FULL = "temporary folder full"


class NoMount(Exception):
    """This process may not mount a tmpfs."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small tmpfs for the length of a block. Raises NoMount."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise NoMount(f"a tmpfs could not be mounted on {folder}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def disk_faults(folder: Path) -> list[Fault]:
    """Return the faults of a folder without space, alone and with a process that starts in it."""

    def full(kill: Inject | None = None) -> Inject:
        def inject(server: Server) -> Effect:
            filler = folder / "filler"
            fill(filler)
            if kill is not None:
                kill(server)
            return Effect(filler.unlink, lambda: kill is None or _has_started(server))

        return inject

    return [
        Fault(FULL, full()),
        Fault(f"{FULL}, engine killed", full(signal_to("engine", signal.SIGKILL))),
        Fault(f"{FULL}, HTTP worker killed", full(signal_to("HTTP worker", signal.SIGKILL)), True),
    ]


def _has_started(server: Server) -> bool:
    try:
        return bool(server.ping().ok)
    except requests.RequestException:
        return False


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(65_536)):
            pass
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(b"0"):
            pass
