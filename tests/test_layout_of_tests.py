"""The layout of the tests: short distinct names, few files in a folder, folders of the packages."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
MAX_FILES = 14  # in a folder
MAX_NAME = 60  # characters of a test's name
SUPPORT = TESTS / "support"
# The folders that mirror no folder of `container/`.
OTHERS = {
    "benchmarks", "docker_image", "docker_image_scripts", "docs", "integration", "real", "sdk",
    "support",
}  # fmt: skip


def _names_of_tests() -> Iterator[str]:
    for path in TESTS.rglob("*.py"):
        yield from re.findall(r"^ *def (test_\w+)", path.read_text(), re.M)


def _folders() -> set[Path]:
    return {path.parent for path in TESTS.rglob("*.py")}


def _source_of(folder: Path) -> Path:
    """Return the folder of source that a folder of tests mirrors."""
    if folder.parts[0] == "deploy":
        return ROOT / "sagemaker_deploy" / Path(*folder.parts[1:])
    return ROOT / "container" / folder


def test_every_test_module_has_a_name_of_its_own() -> None:
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_names_of_tests_are_short() -> None:
    assert [name for name in _names_of_tests() if len(name) > MAX_NAME] == []


def test_a_folder_of_tests_lists_few_files() -> None:
    assert [folder for folder in _folders() if len([*folder.glob("*.py")]) > MAX_FILES] == []


def test_folders_mirror_the_packages() -> None:
    folders = {folder.relative_to(TESTS) for folder in _folders() if folder != TESTS}
    mirrors = {folder for folder in folders if folder.parts[0] not in OTHERS}
    sources = {folder: _source_of(folder) for folder in mirrors}
    assert [folder for folder, source in sources.items() if not source.is_dir()] == []


def test_the_readme_of_support_names_every_module() -> None:
    readme = (SUPPORT / "README.md").read_text()
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", readme))))
    assert {path.stem for path in SUPPORT.rglob("*.py")} - words == set()
