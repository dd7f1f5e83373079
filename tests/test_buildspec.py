"""The runner of tests/image/test_buildspec.py follows CodeBuild's rules of failing."""

import subprocess

import pytest

from tests.support.codebuild import script


def _run(**phases: dict) -> tuple[int, list[str]]:
    done = subprocess.run(
        ["bash", "-c", script({"phases": phases})], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.split()


def test_phases_run_in_order_in_one_shell() -> None:
    status, said = _run(
        post_build={"commands": ["echo $WORD"]}, install={"commands": ["WORD=kept", "echo first"]}
    )
    assert (status, said) == (0, ["PHASE", "install", "first", "PHASE", "post_build", "kept"])


def test_a_failed_command_ends_its_phase_but_not_its_finally() -> None:
    status, said = _run(
        install={"commands": ["false", "echo no"], "finally": ["echo tidied"]},
        build={"commands": ["echo no"]},
    )
    assert status == 1
    assert said == ["PHASE", "install", "tidied"]


@pytest.mark.parametrize(("rule", "reached"), [({}, True), ({"on-failure": "ABORT"}, False)])
def test_a_failed_build_reaches_post_build_unless_it_aborts(rule: dict, reached: bool) -> None:
    status, said = _run(
        build={"commands": ["(exit 7)"]} | rule,
        post_build={"commands": ["echo $CODEBUILD_BUILD_SUCCEEDING"]},
    )
    assert status == 7
    assert (said[-1] == "0") == reached
