"""Runs the cases of one part: the process of `supervise`.

    python -m benchmarks.gpu_day.worker PART MODULE RESULTS DEVICE [AFTER]

Cases up to and including AFTER have run, in a process that died or was killed in that one.
"""

import importlib
import sys
import traceback
from pathlib import Path

from benchmarks.gpu_day.plan import Case, Scale
from benchmarks.gpu_day.results import Recorder

# The device accepts no more work after some errors: the rest runs in a new process.
RESTART = 75
BROKEN_DEVICE = ("AcceleratorError", "CUDA error", "device-side assert")
ERROR_CHARS = 2500


def main(part: str, module: str, results: str, device: str, after: str = "") -> int:
    """Run the cases; return the exit code."""
    recorder = Recorder(Path(results), part)
    scale = Scale(device)
    try:
        cases: list[Case] = importlib.import_module(module).cases(scale)
    except Exception:
        recorder.write("part", error=traceback.format_exc()[-ERROR_CHARS:])
        raise
    names = [case.name for case in cases]
    if after:
        cases = cases[names.index(after) + 1 :]
    for case in cases:
        if not run_case(case, recorder, case.limit_s * scale.patience):
            return RESTART
    recorder.done()
    return 0


def run_case(case: Case, recorder: Recorder, limit_s: float) -> bool:
    """Run one case and write how it ended; return whether the device is still usable."""
    print(f"--- {case.name}", flush=True)
    recorder.begin(case.name, limit_s)
    try:
        case.run(recorder)
    except (Exception, SystemExit) as error:
        text = traceback.format_exc()
        print(text, flush=True)
        recorder.end("failed", text[-ERROR_CHARS:])
        return not any(mark in f"{type(error).__name__}: {error}" for mark in BROKEN_DEVICE)
    recorder.end("ok")
    return True


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
