"""`python -m container doctor`: the checks, on this machine."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from container import machine
from container.cli import doctor
from container.cli.doctor import OK, PROBLEM, WARNING, Finding
from container.machine import Gpu, visible_gpus
from tests.support.servers import DEMO_MODEL, ROOT

OFFLINE = {"HF_HUB_OFFLINE": "1"}
SMI = "#!/bin/sh\necho 'NVIDIA L4, 23034 MiB, 550.90.07'\necho 'NVIDIA L4, [N/A], 550.90.07'\n"


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    return list(doctor.examine({"HF_MODEL_ID": str(DEMO_MODEL), "SHARDED": "true", **OFFLINE}))


def _of(findings: list[Finding], subject: str) -> list[Finding]:
    return [finding for finding in findings if finding.subject == subject]


def test_a_machine_that_can_serve_has_no_problem(findings: list[Finding]) -> None:
    assert [finding for finding in findings if finding.state == PROBLEM] == []
    for subject in ("processor", "kernels", "GPU", "memory", "disk", "port", "Hub"):
        assert _of(findings, subject), subject


def test_the_kernels_and_the_largest_model_are_named(findings: list[Finding]) -> None:
    [kernels] = _of(findings, "kernels")
    assert "compiled for" in kernels.text
    [memory] = _of(findings, "memory")
    assert all(name in memory.text for name in ("float32", "bfloat16", "int8", "int4"))


def test_a_variable_without_effect_is_named(findings: list[Finding]) -> None:
    assert any("SHARDED" in finding.text for finding in _of(findings, "settings"))


def test_every_mistake_has_a_remedy(findings: list[Finding]) -> None:
    assert all(finding.remedy for finding in findings if finding.state == PROBLEM)
    wrong = list(doctor.examine({"PORT": "x", "DTYPE": "int3", **OFFLINE}))
    mistakes = [finding for finding in wrong if finding.state == PROBLEM]
    assert {finding.text.split(":")[0] for finding in mistakes} >= {"PORT", "DTYPE"}
    assert all(finding.remedy for finding in mistakes)


def test_a_taken_port_is_a_warning() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        [finding] = doctor._port(taken.getsockname()[1])
    assert finding.state == WARNING
    assert "PORT" in finding.remedy


@pytest.mark.parametrize(
    ("model", "state"), [("someone/something", PROBLEM), (str(DEMO_MODEL), WARNING)]
)
def test_an_unreachable_hub_is_a_problem_only_for_who_needs_it(
    monkeypatch: pytest.MonkeyPatch, model: str, state: str
) -> None:
    monkeypatch.setattr(doctor, "_hub_error", lambda *_: "no network")
    [finding] = doctor._hub(model, None, {})
    assert (finding.state, finding.text) == (state, "no network")


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(visible_gpus(), list)
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setattr(machine, "QUERY", (str(tmp_path / "nvidia-smi"),))
    assert visible_gpus() == [Gpu("NVIDIA L4", 23034 * 2**20, "550.90.07")]
    [_, gpu] = doctor._fits(visible_gpus())
    assert gpu.state == OK
    assert "22 GiB" in gpu.text


def test_the_exit_code_says_whether_something_must_be_mended() -> None:
    command = [sys.executable, "-m", "container", "doctor", "--json"]
    env = {"PATH": "/usr/bin:/bin", "PORT": "0", "HOME": "/tmp", **OFFLINE}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert result.returncode == 1, result.stderr
    problems = [each for each in json.loads(result.stdout) if each["state"] == PROBLEM]
    assert problems[0]["text"].startswith("PORT")
