"""The code of README, executed against a server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT, Server

BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
# Blocks for a server; the others are commands that tests/docs compares with the Makefile, code for
# an AWS account, and user code, which tests/sdk and tests/integration/user_code have.
CALLS = [
    (kind, code)
    for kind, code in BLOCKS
    if kind != "text" and "localhost:8080" in code and ("curl" in code or kind == "python")
]


def test_readme_has_its_ways_in() -> None:
    assert len([code for kind, code in CALLS if kind == "python"]) >= 2
    assert len([code for kind, code in CALLS if kind == ""]) >= 2


@pytest.mark.parametrize(("kind", "code"), CALLS, ids=[code[:30] for _, code in CALLS])
def test_code_of_readme_runs(server: Server, tmp_path: Path, kind: str, code: str) -> None:
    program = code.replace("http://localhost:8080", server.url)
    command = [sys.executable, "-c"] if kind == "python" else ["bash", "-e", "-c"]
    env = os.environ | {"HF_HUB_OFFLINE": "0"}
    result = subprocess.run(
        [*command, program.replace("curl ", "curl --fail-with-body --silent ")],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env=env, check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert "learning" in result.stdout
