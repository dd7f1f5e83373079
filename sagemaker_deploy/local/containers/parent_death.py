"""Runs a command that must not outlive its parent: `python parent_death.py COMMAND ARGUMENTS`.

The parent holds the other end of this process's standard input. When that closes, even because the
parent was killed, or on SIGTERM, the command gets SIGTERM and, as on SageMaker, SIGKILL after 30 s;
then the rest of its process group is killed too.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

KILL_AFTER_S = 30.0


def main(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles a terminal's ^C
    threading.Thread(target=_watch_owner, args=(stop,), daemon=True).start()
    threading.Thread(target=_stop_at_event, args=(child, stop), daemon=True).start()
    code = child.wait()
    _kill_group(child)
    return code


def _watch_owner(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()


def _stop_at_event(child: "subprocess.Popen[bytes]", stop: threading.Event) -> None:
    stop.wait()
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        child.wait(KILL_AFTER_S)
    except subprocess.TimeoutExpired:
        _kill_group(child)


def _kill_group(child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
