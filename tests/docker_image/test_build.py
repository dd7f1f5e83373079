"""Builds that are refused."""

import os
import subprocess

import pytest

from tests.support.image import containers
from tests.support.servers import ROOT

pytestmark = pytest.mark.timeout(600)


def test_a_cuda_base_without_torch_is_refused() -> None:
    base = "localhost/stand-in:bookworm"
    if containers.ENGINE != "podman" or os.getuid() != 0:
        pytest.skip(f"needs root's podman, which has {base}")
    env = os.environ | {"VARIANT": "cuda", "BASE_IMAGE": base, "IMAGE": "localhost/refused:cuda"}
    done = subprocess.run(
        ["image/build.sh"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "VARIANT=cuda needs a BASE_IMAGE with a CUDA build of torch" in done.stdout + done.stderr
