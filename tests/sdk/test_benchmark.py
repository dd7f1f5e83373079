"""`python -m benchmarks` against a SageMaker endpoint by its name, through boto3's own client."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT


@pytest.mark.parametrize("api", ["chat", "generate"])
def test_an_endpoint_is_measured_by_its_name(demo: str, tmp_path: Path, api: str) -> None:
    path = tmp_path / "result.json"
    command = [
        sys.executable, "-m", "benchmarks", demo, "--clients", "2", "--requests", "4", "--api", api,
        "--output-tokens", "6", "--prompt-tokens", "16", "--warm-up", "0", "--json", str(path),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr + run.stdout
    [level] = json.loads(path.read_text())["levels"]
    assert (level["requests"], level["failed"], level["errors"]) == (4, 0, {})
    assert level["output_tokens"] > 0
