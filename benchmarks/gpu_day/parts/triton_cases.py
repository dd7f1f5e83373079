"""The cases of our Triton kernels on the device; on a CPU a few of them in the interpreter."""

import importlib.util
import os
from functools import partial
from typing import Any

from benchmarks.gpu_day.plan import Case, Scale
from benchmarks.gpu_day.results import Recorder
from benchmarks.gpu_day.supervise import ROOT

FILE = ROOT / "tests" / "model" / "kernels" / "triton_interpreter_cases.py"
# On a CPU, in the interpreter.
FEW = "norms_and_gates and 16-"
WORKERS = 8


def cases(scale: Scale) -> list[Case]:
    """Return the one case."""
    if scale.is_small:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    return [Case("kernels", partial(run_tests, scale), 85)]


class _Reports:
    """A pytest plugin that writes failures as they come."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.passed = 0
        self.failed = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test that has run."""
        if report.when == "call" and report.passed:
            self.passed += 1
        elif report.failed:
            self.failed += 1
            self._recorder.value(report.nodeid.split("::")[-1], report.longreprtext[-1500:])


def run_tests(scale: Scale, recorder: Recorder) -> None:
    """Run the file's tests, several processes at a time where pytest can."""
    import pytest

    reports = _Reports(recorder)
    # Without the repository's configuration, which wants plugins that this Python may not have.
    arguments = [str(FILE), "-q", "-c", os.devnull, f"--rootdir={ROOT}", "--import-mode=importlib"]
    arguments += ["--noconftest", "-p", "no:cacheprovider", "--tb=short"]
    if scale.is_small:
        arguments += ["-k", FEW]
    elif importlib.util.find_spec("xdist") is not None:
        arguments += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
    code = pytest.main(arguments, plugins=[reports])
    recorder.value("passed", reports.passed)
    recorder.value("failed", reports.failed, most=0)
    if code != 0 or not reports.passed:
        raise AssertionError(f"pytest's exit code is {int(code)}: {reports.failed} failed")
