"""A part of a GPU day that breaks in the way that FAULT names; its other cases must still run."""

import os
import signal
import subprocess
import sys
import time

from benchmarks.gpu_day.plan import Case, Scale
from benchmarks.gpu_day.results import Recorder

FAULT = os.environ["FAULT"]
if FAULT == "missing import":
    import no_such_package  # noqa: F401


def cases(scale: Scale) -> list[Case]:
    return [Case("before", measure), Case("fault", fail, limit_s=1.0), Case("after", measure)]


def measure(recorder: Recorder) -> None:
    recorder.value("speed", 2.0, "GB/s", least=1.0)


def fail(recorder: Recorder) -> None:
    recorder.value("begun", True)
    if FAULT == "raise":
        raise ValueError("the kernel is wrong")
    if FAULT == "exit":
        sys.exit(3)
    if FAULT == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if FAULT == "broken device":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if FAULT == "orphan":
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        recorder.value("child", child.pid)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
