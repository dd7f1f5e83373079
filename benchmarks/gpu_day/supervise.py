"""Runs one part's process, ends it at its limits, starts it again after a case that broke it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.gpu_day.plan import Part, Scale
from benchmarks.gpu_day.results import Recorder, read_lines
from benchmarks.gpu_day.worker import RESTART

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.2
# Below this no process of a part is started, since it would only import.
LEAST_S = 5.0
KILL_S = 5.0
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of processes whose parent has died, so that `end_all` finds them."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run_part(
    part: Part, device: str, results: Path, output: BinaryIO, seconds: float,
    written: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Run a part for a number of seconds at most; `written` is called when it has new results."""
    deadline = time.monotonic() + min(seconds, part.limit_s * Scale(device).patience)
    recorder, after = Recorder(results, part.name), ""
    while True:
        ended = _run_process(part, device, results, output, deadline, after, written)
        lines = [line for line in read_lines(results) if line["part"] == part.name]
        last = lines[-1] if lines else {"event": "none", "case": ""}
        if last["event"] == "done":
            return
        recorder.case = last["case"]
        if last["event"] in ("begin", "value"):
            recorder.end("failed", ended)
        elif ended != f"exit code {RESTART}":  # before its first case, or between two
            if last["event"] != "part":
                recorder.write("part", error=f"the part's process: {ended}")
            return
        if deadline - time.monotonic() < LEAST_S:
            recorder.write("part", error="no time is left for its other cases")
            return
        after = last["case"]


def _run_process(
    part: Part, device: str, results: Path, output: BinaryIO, deadline: float, after: str,
    written: Callable[[], None],
) -> str:  # fmt: skip
    """Run the cases after one; return how the process ended."""
    command = [sys.executable, "-m", "benchmarks.gpu_day.worker"]
    command += [part.name, part.module, str(results), device]
    process = subprocess.Popen(
        command + ([after] if after else []),
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **part.environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        return _watch(process, results, part.name, deadline, written)
    finally:
        end_all(process)


def _watch(
    process: "subprocess.Popen[bytes]", results: Path, part: str, deadline: float,
    written: Callable[[], None],
) -> str:  # fmt: skip
    size = -1
    while process.poll() is None:
        now = time.monotonic()
        if now > deadline:
            return "killed: the part's time was over"
        if results.exists() and results.stat().st_size != size:
            size = results.stat().st_size
            written()
        if overrun := _overrun(results, part):
            return f"killed: the case took over {overrun:.0f} s"
        time.sleep(POLL_S)
    code = process.returncode
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _overrun(results: Path, part: str) -> float:
    """Return the limit of the running case if it is over, else 0."""
    lines: list[dict[str, Any]] = [line for line in read_lines(results) if line["part"] == part]
    begun = next((line for line in reversed(lines) if line["event"] in ("begin", "end")), None)
    if begun is None or begun["event"] == "end":
        return 0.0
    return float(begun["limit_s"]) if time.time() - begun["at"] > begun["limit_s"] else 0.0


def end_all(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of a part: its process group and all other children of this process.

    A process that hangs in the GPU's driver may not die; it is waited for a few seconds only.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_S
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_S)
    with contextlib.suppress(ImportError):
        import psutil

        while time.monotonic() < deadline:
            children = psutil.Process().children(recursive=True)
            for child in children:
                with contextlib.suppress(psutil.Error):
                    child.kill()
            _, alive = psutil.wait_procs(children, 0.5)
            if not alive and not psutil.Process().children():
                return
