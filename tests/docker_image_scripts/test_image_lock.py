"""The image's locks hold what the server needs, in the versions that are tested together."""

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
STALE = "image/locks/*.lock are stale: run `make lock`"


def _versions(path: Path) -> dict[str, str]:
    pins = re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.M)
    return {canonicalize_name(name): version.partition("+")[0] for name, version in pins}


def _closure(requirements: Iterable[str]) -> set[str]:
    """The packages that these requirements bring on this platform, as installed here."""
    packages: set[tuple[str, str]] = set()
    todo = [(Requirement(text), "") for text in requirements]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            node = (canonicalize_name(requirement.name), wanted)
            if node not in packages:
                packages.add(node)
                more = importlib.metadata.requires(requirement.name) or []
                todo += [(Requirement(text), wanted) for text in more]
    return {name for name, _ in packages}


def _locked(name: str) -> dict[str, str]:
    return _versions(ROOT / "image" / "locks" / name)


def test_the_locks_have_the_versions_that_are_tested_together() -> None:
    tested = _versions(ROOT / "constraints.txt")
    for lock in ("server.lock", "torch-cpu.lock"):
        for name, version in _locked(lock).items():
            assert tested.get(name, version) == version, f"{name} {version} in {lock}; {STALE}"


def test_the_locks_hold_the_requirements_and_no_more() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    server = _closure(project["optional-dependencies"]["server"])
    torch = _closure(["torch"])
    assert _locked("torch-cpu.lock").keys() == torch, STALE
    assert _locked("server.lock").keys() | torch == server, STALE


def test_everything_in_the_locks_is_hashed() -> None:
    for lock in ("server.lock", "torch-cpu.lock", "kernels.lock"):
        text = (ROOT / "image" / "locks" / lock).read_text()
        for block in re.split(r"\n(?=\w)", text.partition("\n#")[0].strip()):
            assert "--hash=sha256:" in block, block


def test_torch_is_locked_for_x86_and_for_graviton() -> None:
    text = (ROOT / "image" / "locks" / "torch-cpu.lock").read_text()
    block = re.search(r"^torch==.*?(?=^\w)", text, re.M | re.S)
    assert block is not None
    assert block[0].count("--hash=sha256:") >= 2, "write the lock with TORCH_INDEX set"
