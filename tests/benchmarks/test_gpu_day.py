"""The GPU day without a GPU: broken parts end alone, and the whole runs with a CPU in its place."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.gpu_day.__main__ import run_all
from benchmarks.gpu_day.plan import PARTS, TOTAL_S, Part
from benchmarks.gpu_day.report import write_report
from benchmarks.gpu_day.results import Recorder
from benchmarks.gpu_day.wheels import LEFT_OUT, LOCK, locked, unpack

ROOT = Path(__file__).parents[2]
MODULE = "tests.benchmarks.gpu_day_faults"


def _part(fault: str, limit_s: float = 30.0) -> Part:
    return Part(fault, f"A part with a fault: {fault}", MODULE, limit_s, {"FAULT": fault})


def _run(
    parts: tuple[Part, ...], folder: Path, seconds: float = 60.0, code: int = 1
) -> dict[str, Any]:
    """Run them in a process of its own, which adopts and ends the processes that they leave."""
    named = [[part.name, part.title, part.module, part.limit_s, dict(part.environment)]
             for part in parts]  # fmt: skip
    program = (
        "import json, sys; from pathlib import Path\n"
        "from benchmarks.gpu_day.__main__ import run_all\n"
        "from benchmarks.gpu_day.plan import Part\n"
        "from benchmarks.gpu_day.supervise import adopt_orphans\n"
        "adopt_orphans()\n"
        "parts = tuple(Part(*one) for one in json.loads(sys.argv[1]))\n"
        "sys.exit(run_all(parts, 'cpu', Path(sys.argv[2]), float(sys.argv[3])))"
    )
    command = [sys.executable, "-c", program, json.dumps(named), str(folder), str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    text = (folder / "report.md").read_text()
    assert done.returncode == code, done.stdout + done.stderr + text
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def test_other_cases_run_after_a_failed_one(tmp_path: Path) -> None:
    faults = {
        "raise": "the kernel is wrong",
        "exit": "SystemExit: 3",
        "crash": "killed by SIGSEGV",
        "broken device": "illegal memory access",
        "hang": "killed: the case took over 4 s",
        "orphan": "killed by SIGKILL",
    }
    report = _run(tuple(map(_part, ["missing import", *faults])), tmp_path)
    missing, *others = report["parts"]
    assert missing["status"] == "failed"
    assert "No module named 'no_such_package'" in missing["errors"][0]
    for part in others:
        cases = part["cases"]
        assert {name: case["status"] for name, case in cases.items()} == {
            "before": "ok", "fault": "failed", "after": "ok",
        }, part["name"]  # fmt: skip
        assert faults[part["name"]] in cases["fault"]["error"]
        assert cases["fault"]["values"][0] == {"name": "begun", "value": True, "unit": ""}
    child = others[-1]["cases"]["fault"]["values"][1]["value"]
    assert not psutil.pid_exists(child), "a process of a part outlives it"
    text = (tmp_path / "report.md").read_text()
    assert "| raise: before | speed: 2.0 GB/s | at least 1.0 | met |" in text
    assert "the kernel is wrong" in text
    assert "### after: ok" in text
    assert "No module named" in (tmp_path / "output.txt").read_text()


def test_a_part_over_its_time_limit_is_ended(tmp_path: Path) -> None:
    slow = Part("slow", "Slow", MODULE, 0.5, {"FAULT": "missing"})
    report = _run((slow, _part("raise")), tmp_path)
    assert report["parts"][0]["status"] == "failed"
    assert "the part's time was over" in json.dumps(report["parts"][0])
    assert report["parts"][1]["cases"]["after"]["status"] == "ok"


def test_parts_skipped_for_time_are_reported(tmp_path: Path) -> None:
    assert run_all(PARTS, "cpu", tmp_path, seconds=3.0) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert {part["status"] for part in report["parts"]} == {"not run"}


def test_the_report_is_written_while_a_part_runs(tmp_path: Path) -> None:
    results = tmp_path / "results"
    recorder = Recorder(results, "raise")
    recorder.begin("a", 3.0)
    recorder.value("table", "first\nsecond")
    recorder.value("share", 0.5, least=0.8)
    with results.open("a") as file:
        file.write('{"event": "val')  # killed within a line
    write_report(tmp_path, (_part("raise"),), results, {"date": "today"})
    text = (tmp_path / "report.md").read_text()
    assert "### a: running" in text
    assert "| raise: a | share: 0.5 | at least 0.8 | **missed** |" in text
    assert "```\nfirst\nsecond\n```" in text


def test_the_limits_of_the_parts_fit_the_day() -> None:
    names = [part.name for part in PARTS]
    assert names == ["device", "triton", "theorem", "server", "speed", "quantized", "profile"]
    assert TOTAL_S == 540
    assert sum(part.limit_s for part in PARTS) <= TOTAL_S - 5


def test_locked_wheels_are_unpacked_for_pythonpath(tmp_path: Path) -> None:
    requirements = locked(LOCK.read_text(), LEFT_OUT)
    assert {"gunicorn", "gevent", "flask", "msgspec", "pyzmq", "transformers"} <= set(requirements)
    assert not LEFT_OUT & set(requirements)
    assert all("--hash=sha256:" in block for block in requirements.values())
    assert "torch" not in requirements
    with zipfile.ZipFile(tmp_path / "a-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a/__init__.py", "NAME = 'a'")
        wheel.writestr("a-1.0.data/purelib/b.py", "NAME = 'b'")
        wheel.writestr("a-1.0.data/scripts/c", "")
    assert unpack(tmp_path, tmp_path / "site") == 1
    code = "import a, b; print(a.NAME + b.NAME)"
    shown = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.strip() == "ab"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu_day.sh", "--device", "cpu", "--out", tmp_path / "server",
         "--only", "server"],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + (tmp_path / "server" / "report.md").read_text()
    others = Part("others", "Others", "tests.benchmarks.gpu_day_rehearsal", 150.0)
    report = _run((others,), tmp_path, 600.0, code=0)
    names = {case for case, facts in report["parts"][0]["cases"].items() if facts["values"]}
    assert {"device", "kernels", "llama: host offload", "decode at 1", "fp8 cache"} <= names
    served = {part.module for part in PARTS if part.name != "server"}
    assert len(served) == len(PARTS) - 1 == 6, "a new part belongs into gpu_day_rehearsal.py"
