"""Runs a buildspec as CodeBuild runs version 0.2: all phases in one shell, in order.

A phase stops at its first failing command and then runs its `finally`. The build stops there if
the phase says ABORT, and always after a failed install or pre_build; a failed build phase without
ABORT is followed by post_build with CODEBUILD_BUILD_SUCCEEDING=0.
"""

import shlex
import subprocess
from pathlib import Path

import yaml

PHASES = ("install", "pre_build", "build", "post_build")


def script(buildspec: dict) -> str:
    """The whole build as one script; it exits with the first failing command's status."""
    lines = ["status=0"]
    for name in PHASES:
        phase = buildspec["phases"].get(name)
        if phase is None:
            continue
        lines += [f"echo 'PHASE {name}'", "phase=0"]
        for command in phase["commands"]:
            lines.append(f"[ $phase != 0 ] || eval {shlex.quote(command)} || phase=$?")
        lines += phase.get("finally", [])
        lines.append("[ $status != 0 ] || status=$phase")
        if phase.get("on-failure") == "ABORT" or name in ("install", "pre_build"):
            lines.append("[ $phase = 0 ] || exit $status")
        lines.append("if [ $status != 0 ]; then export CODEBUILD_BUILD_SUCCEEDING=0; fi")
    return "\n".join([*lines, "exit $status"])


def build(folder: Path, env: dict[str, str], log: Path) -> int:
    """Run the folder's buildspec.yml with what CodeBuild would set; the exit status."""
    buildspec = yaml.safe_load((folder / "buildspec.yml").read_text())
    variables = buildspec["env"]["variables"] | {"CODEBUILD_BUILD_SUCCEEDING": "1"} | env
    with log.open("wb") as output:
        return subprocess.run(
            ["bash", "-c", script(buildspec)],
            cwd=folder, env=variables, stdout=output, stderr=output, check=False,
        ).returncode  # fmt: skip
