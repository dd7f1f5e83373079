"""The image in the tools on a developer's machine: the SageMaker SDK's local mode, and compose."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.image import containers
from tests.support.servers import DEMO_MODEL, ROOT

NEEDED = ("docker", "docker-compose", "ip", "iptables", "unshare")
pytestmark = pytest.mark.timeout(420)
NO_AWS = {
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
    "SAGEMAKER_SUPPRESS_V2_WARNING": "1",
}
# Telemetry would try S3; only this file switches it off.
SDK_SETTINGS = """
SchemaVersion: '1.0'
SageMaker:
  PythonSDK:
    Modules:
      TelemetryOptOut: true
"""
COMPOSE = """
docker-compose up --detach
for _ in $(seq 120); do curl --silent --fail localhost:8099/ping && break; sleep 0.5; done
curl --silent localhost:8099/invocations --header 'Content-Type: application/json' \
    --data '{"inputs": "What is deep learning?"}'
docker-compose stop --timeout 30
"""


def _with_docker(folder: Path, *command: str | Path, **env: str) -> str:
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing or containers.ENGINE != "podman" or os.getuid() != 0:
        assert not os.environ.get("IMAGE_TOOLS"), f"required, and missing: {missing}"
        pytest.skip(f"needs root, podman and {', '.join(NEEDED)}; missing: {missing}")
    done = subprocess.run(
        ["unshare", "--net", "--mount", "tests/docker_image/with_docker.sh", folder, *command],
        cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_sdk_deploys_predicts_and_deletes_in_local_mode(tmp_path: Path) -> None:
    model, settings = tmp_path / "model", tmp_path / "sdk.yaml"
    shutil.copytree(DEMO_MODEL, model)
    settings.write_text(SDK_SETTINGS)
    command = (".venv-sdk/bin/python", "tests/docker_image/local_mode.py", containers.IMAGE)
    env = NO_AWS | {"SAGEMAKER_USER_CONFIG_OVERRIDE": str(settings)}
    result = _with_docker(tmp_path, *command, model, tmp_path, **env)
    assert "learning" in result
    assert "left: Exited (0)" in result


def test_compose_serves_the_demo_model_and_stops_it_cleanly(tmp_path: Path) -> None:
    result = _with_docker(tmp_path, "bash", "-c", COMPOSE, IMAGE=containers.IMAGE, PORT="8099")
    assert "generated_text" in result
    assert "left: Exited (0)" in result
