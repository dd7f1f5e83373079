"""The documents name what exists: the code map each folder of source, and others their paths."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECORDS = ("CHANGELOG.md", "LOG.md")  # of the past
DOCUMENTS = [
    path
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
    if path.name not in RECORDS
]
PACKAGES = ("container", "sagemaker_deploy")
SOURCES = {".py", ".c", ".h"}


def _folders() -> list[str]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.*")]
    folders = {path.parent for path in files if path.suffix in SOURCES}
    return sorted(f"{folder.relative_to(ROOT).as_posix()}/" for folder in folders)


def _code_map() -> str:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    return text.split("## 4. Code map", 1)[1].split("### Invariants", 1)[0]


def test_the_code_map_has_one_line_for_each_folder_of_source() -> None:
    lines = re.findall(r"^\* `([^`]+/)`: .+$", _code_map(), re.M)
    assert sorted(lines) == _folders()


def test_a_folder_takes_one_line_of_the_code_map() -> None:
    lines = [line for line in _code_map().splitlines() if line]
    after_entries = [line for entry, line in pairwise(lines) if entry.startswith("* ")]
    assert [line for line in after_entries if line.startswith(" ")] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_in_a_document_exists(document: Path) -> None:
    paths = re.findall(
        r"`((?:container|sagemaker_deploy|tests|image|benchmarks)/[^`*<> ]*)`", document.read_text()
    )
    assert [path for path in paths if not (ROOT / path).exists()] == []
