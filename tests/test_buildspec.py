"""buildspec.yml has only steps of the Makefile; its runner follows CodeBuild's rules of failing."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.image.codebuild import script

ROOT = Path(__file__).parents[1]


def test_every_step_is_a_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    phases = yaml.safe_load((ROOT / "buildspec.yml").read_text())["phases"].values()
    for command in (command for phase in phases for command in phase["commands"]):
        make, target = command.split()
        assert make == "make"
        assert target in targets


def _run(**phases: dict) -> tuple[int, list[str]]:
    done = subprocess.run(
        ["bash", "-c", script({"phases": phases})], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.split()


def test_phases_run_in_order_in_one_shell() -> None:
    status, output = _run(
        post_build={"commands": ["echo $WORD"]}, install={"commands": ["WORD=kept", "echo first"]}
    )
    assert (status, output) == (0, ["PHASE", "install", "first", "PHASE", "post_build", "kept"])


def test_a_failed_command_ends_its_phase_but_not_its_finally() -> None:
    status, output = _run(
        install={"commands": ["false", "echo no"], "finally": ["echo tidied"]},
        build={"commands": ["echo no"]},
    )
    assert status == 1
    assert output == ["PHASE", "install", "tidied"]


@pytest.mark.parametrize(("rule", "reached"), [({}, True), ({"on-failure": "ABORT"}, False)])
def test_a_failed_build_reaches_post_build_unless_it_aborts(rule: dict, reached: bool) -> None:
    status, output = _run(
        build={"commands": ["(exit 7)"]} | rule,
        post_build={"commands": ["echo $CODEBUILD_BUILD_SUCCEEDING"]},
    )
    assert status == 7
    assert (output[-1] == "0") == reached
