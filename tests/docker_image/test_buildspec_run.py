"""buildspec.yml, phase by phase, with a registry of ECR's name and password and a stubbed aws.

The tests that its phases run are narrowed to a few, since all of them have just run.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.image import codebuild, containers, ecr, stub_aws
from tests.support.image.stub_aws import Registry
from tests.support.servers import ROOT

# One at least of integration, of each half of the models, of units, SDK and image, as pytest fails
# where it collects none.
A_FEW_TESTS = (
    '-k "changelog or ping_and_an_invocation or test_config or test_model_config or test_recorder'
    ' or ping_is_200"'
)
REPOSITORY_URI = f"{stub_aws.HOST}/{stub_aws.REPOSITORY}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TAG = f"cpu-{COMMIT[:12]}"
NEEDED = ("docker", "docker-registry", "openssl", "unshare")
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing or containers.ENGINE != "podman" or os.getuid() != 0:
        assert not os.environ.get("IMAGE_TOOLS"), f"required, and missing: {missing}"
        pytest.skip(f"needs root, podman and {', '.join(NEEDED)}; missing: {missing}")
    with ecr.registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def environ(
    registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """What CodeBuild's project sets, with the stub and the registry in AWS's place."""
    folder = tmp_path_factory.mktemp("codebuild")
    stub = folder / "bin" / "aws"
    stub.parent.mkdir()
    python = ROOT / ".venv-sdk" / "bin" / "python"
    stub.write_text(f'#!/bin/sh\nexec {python} {stub_aws.__file__} "$@"\n')
    stub.chmod(0o755)
    inherited = ("HOME", "LANG", "GOMP_SPINCOUNT")
    inherited += tuple(name for name in os.environ if name.startswith(("PIP_", "SSL_")))
    settings = {name: os.environ[name] for name in inherited if name in os.environ}
    # Where no registry has the base, image-test has made a stand-in; the pipeline builds on it too.
    base = "localhost/stand-in:bookworm"
    if subprocess.run(["podman", "image", "exists", base], check=False).returncode == 0:
        settings["BASE_IMAGE"] = base
    with ecr.docker_api(folder, trusted=registry.certificate) as docker_host:
        yield settings | {
            "PATH": f"{stub.parent}:{os.environ['PATH']}",
            "DOCKER_HOST": docker_host,
            "DOCKER_CONFIG": str(folder / "docker"),
            "REPOSITORY_URI": REPOSITORY_URI,
            "CODEBUILD_RESOLVED_SOURCE_VERSION": COMMIT,
            "PYTEST_ADDOPTS": A_FEW_TESTS,
            "STUB_CERTIFICATE": str(registry.certificate),
        }


def _build(environ: dict[str, str], tmp_path: Path, **changes: str) -> tuple[int, str]:
    log = tmp_path / "log"
    return codebuild.build(ROOT, environ | changes, log), log.read_text()


def test_a_failing_test_ends_the_build_and_nothing_is_pushed(
    environ: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    status, log = _build(environ, tmp_path, PYTEST_ADDOPTS="--no-such-option")
    assert status != 0
    assert "PHASE pre_build" in log
    assert "PHASE build" not in log
    assert registry.tags() == []


def test_a_serious_vulnerability_stops_the_push(
    environ: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    vulnerability = {"id": "CVE-2026-0001", "ratings": [{"severity": "critical"}]}
    vulnerability["affects"] = [{"ref": "pkg:pypi/flask@3.1.3"}]
    status, log = _build(environ, tmp_path, STUB_VULNERABILITIES=json.dumps([vulnerability]))
    assert status != 0
    assert "critical: CVE-2026-0001 in pkg:pypi/flask@3.1.3" in log
    assert "PHASE post_build" not in log
    assert registry.tags() == []


def test_a_good_build_is_pushed_with_commit_and_digest(
    environ: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    shutil.rmtree(ROOT / "build" / "reports", ignore_errors=True)
    status, log = _build(environ, tmp_path)
    assert status == 0, log[-3000:]
    assert registry.tags() == [TAG]
    detail = json.loads((ROOT / "imageDetail.json").read_text())
    assert detail == {"ImageURI": f"{REPOSITORY_URI}@{registry.digest(TAG)}"}
    assert "STAGING_CONFIG is not set: nothing is deployed" in log
    reports = {path.name for path in (ROOT / "build" / "reports" / "tests").iterdir()}
    assert reports == {
        "integration.xml",
        "checks.xml",
        "parts.xml",
        "units.xml",
        "sdk.xml",
        "image.xml",
    }
    assert (ROOT / "build" / "reports" / "coverage.xml").exists()


def test_a_build_uses_the_newest_image_as_cache(
    environ: dict[str, str], registry: Registry
) -> None:
    assert registry.tags() == [TAG]
    done = subprocess.run(
        ["make", "image"], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"--cache-from {REPOSITORY_URI}:{TAG}" in done.stderr


def test_the_registry_refuses_another_password(environ: dict[str, str], registry: Registry) -> None:
    done = subprocess.run(
        ["docker", "login", "--username", "AWS", "--password", "wrong", stub_aws.HOST],
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0, done.stdout
