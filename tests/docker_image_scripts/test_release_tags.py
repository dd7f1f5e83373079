"""A release rehearsed: version, tag and tags of its image, with stand-ins for Docker and AWS."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPOSITORY = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/llm"
COMMIT = "0123456789ab"
# Each notes its arguments; aws knows the tags in a file.
STAND_INS = {
    "docker": '#!/bin/sh\necho "docker $*" >> "$LOG"\n',
    "aws": (
        '#!/bin/sh\nfor word; do case $word in imageTag=*) tag=${word#imageTag=} ;; esac; done\n'
        'grep -qx "$tag" "$PUSHED" || { echo "${REFUSAL:-ImageNotFoundException}" >&2; exit 1; }\n'
        'echo "sha256:$tag"\n'
    ),
}  # fmt: skip


class Checkout:
    """A repository with the files of a release, and what Docker was asked."""

    def __init__(self, folder: Path, version: str) -> None:
        self.folder = folder
        self.log, self.pushed = folder / "log", folder / "pushed"
        (folder / "image").mkdir()
        (folder / "container").mkdir()
        (folder / "bin").mkdir()
        for name in ("push.sh", "engine.sh"):
            (folder / "image" / name).write_text((ROOT / "image" / name).read_text())
            (folder / "image" / name).chmod(0o755)
        for name, text in STAND_INS.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        (folder / "container" / "__init__.py").write_text(f'__version__ = "{version}"\n')
        self.log.write_text("")
        self.pushed.write_text(f"cpu-{COMMIT}\n")
        self.git("init", "--quiet")
        self.git("add", "container", "image")
        self.git("commit", "--quiet", "--message", f"Release {version}")

    def git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
        subprocess.run(["git", *identity, *arguments], cwd=self.folder, check=True)

    def push(self, **variables: str) -> "subprocess.CompletedProcess[str]":
        environ = os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "ENGINE": "docker",
            "REPOSITORY_URI": REPOSITORY, "IMAGE": f"{REPOSITORY}:cpu-{COMMIT}",
            "LOG": str(self.log), "PUSHED": str(self.pushed), "VARIANT": "cpu",
        }  # fmt: skip
        return subprocess.run(
            ["image/push.sh"], cwd=self.folder, env=environ | variables, capture_output=True,
            text=True, check=False,
        )  # fmt: skip


def test_a_tagged_commit_gets_the_versions_tag(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, "1.2.3")
    checkout.git("tag", "--annotate", "v1.2.3", "--message", "1.2.3")
    result = checkout.push()
    assert result.returncode == 0, result.stderr
    assert checkout.log.read_text().splitlines() == [
        f"docker push {REPOSITORY}:cpu-{COMMIT}",
        f"docker tag {REPOSITORY}:cpu-{COMMIT} {REPOSITORY}:cpu-1.2.3",
        f"docker push {REPOSITORY}:cpu-1.2.3",
    ]
    assert f"{REPOSITORY}@sha256:cpu-{COMMIT}" in (tmp_path / "imageDetail.json").read_text()


def test_another_commit_gets_its_own_tag_only(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, "1.2.3")
    assert checkout.push().returncode == 0
    assert checkout.log.read_text() == f"docker push {REPOSITORY}:cpu-{COMMIT}\n"


@pytest.mark.parametrize(
    ("pushed", "release", "reason"),
    [
        (f"cpu-{COMMIT}\ncpu-1.2.3\n", "1.2.3", "never move"),
        (f"cpu-{COMMIT}\n", "1.2.4", "says 1.2.3"),
    ],
)
def test_a_version_is_not_pushed_twice_nor_under_another_name(
    tmp_path: Path, pushed: str, release: str, reason: str
) -> None:
    checkout = Checkout(tmp_path, "1.2.3")
    checkout.pushed.write_text(pushed)
    result = checkout.push(RELEASE=release)
    assert result.returncode == 1
    assert reason in result.stderr
    assert checkout.log.read_text() == ""


def test_a_release_waits_until_its_tag_can_be_read(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, "1.2.3")
    result = checkout.push(RELEASE="1.2.3", REFUSAL="ThrottlingException: rate exceeded")
    assert result.returncode == 1
    assert "ThrottlingException" in result.stderr
    assert checkout.log.read_text() == ""


def test_the_release_page_names_every_file_that_has_the_version() -> None:
    page = (ROOT / "docs" / "releasing.md").read_text()
    version = re.search(r'__version__ = "(.*)"', (ROOT / "container" / "__init__.py").read_text())
    assert version is not None
    tracked = subprocess.run(
        ["git", "grep", "-lE", rf'^(version|__version__) *= *"{re.escape(version[1])}"'],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    assert tracked == ["container/__init__.py"]
    assert all(name in page for name in tracked)
