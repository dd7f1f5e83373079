"""`deploy(1, "local")` of the SageMaker SDK 2.x, unmodified, with the image."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import containers
from tests.support.servers import DEMO_MODEL, ROOT

NEEDED = ("docker", "docker-compose", "ip", "iptables", "unshare")


def test_the_sdk_deploys_predicts_and_deletes_in_local_mode(tmp_path: Path) -> None:
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing or containers.ENGINE != "podman" or os.getuid() != 0:
        assert not os.environ.get("IMAGE_TOOLS"), f"required, and missing: {missing}"
        pytest.skip(f"needs root, podman and {', '.join(NEEDED)}; missing: {missing}")
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)
    command = ["unshare", "--net", "--mount", "tests/image/local_mode.sh", containers.IMAGE]
    done = subprocess.run(
        [*command, model, tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "learning" in done.stdout
    assert "left: Exited (0)" in done.stdout
