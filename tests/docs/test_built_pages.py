"""The documents say what is true of the code: generated pages, variables, commands."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from container.__main__ import main as container_command
from container.lifecycle.startup_report import OTHER_IMAGES
from container.settings.other_images import COUNTERPARTS
from container.settings.settings import setting_names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
OTHERS = ("migrating-from-tgi.md", "migrating-from-other-images.md")


def _reference() -> dict[str, str]:
    sys.path.insert(0, str(DOCS / "site"))  # as where that script runs
    try:
        pages: dict[str, str] = importlib.import_module("reference").pages()
    finally:
        sys.path.pop(0)
    return pages


@pytest.mark.parametrize(("path", "content"), _reference().items())
def test_generated_pages_are_those_of_the_code(path: str, content: str) -> None:
    assert (DOCS / path).read_text() == content, "run `make docs`"


def test_every_page_is_in_the_sites_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r": ([\w./-]+\.md)$", text, re.M))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert pages <= named


def test_the_variables_of_troubleshooting_are_settings() -> None:
    known = {*setting_names(), "HF_HOME", "HF_MODEL_ID", "VARIANT"}
    text = (DOCS / "troubleshooting.md").read_text()
    named = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+|DTYPE|PORT|QUANTIZE)(?:=[^`]*)?`", text))
    assert {name for name in named - known if not name.endswith("_")} == set()


def test_the_counterparts_of_other_images_variables_are_settings() -> None:
    text = (DOCS / "migrating-from-other-images.md").read_text().split("## Routes")[0]
    rows = [row.split("|")[1:-1] for row in text.splitlines() if row.startswith("| `")]
    cells = [row[0] if len(row) > 2 else row[1] for row in rows]
    named = {name for cell in cells for name in re.findall(r"`([A-Z][A-Z_]+)`", cell)}
    assert len(named) > 15
    assert named - {*setting_names()} == set()


def test_the_start_names_the_counterparts_of_the_page() -> None:
    text = (DOCS / "migrating-from-other-images.md").read_text().split("## Routes")[0]
    own = setting_names()
    for row in (row for row in text.splitlines() if row.startswith("| `")):
        names = re.findall(r"`([A-Z][A-Z0-9_]+)", row)
        theirs = {name for name in names if name.startswith(OTHER_IMAGES)}
        cells = [cell for cell in row.split("|")[1:-1] if not re.search("unset it|none:", cell)]
        ours = [name for cell in cells for name in re.findall(r"`([A-Z][A-Z0-9_]+)", cell)]
        expected = next((name for name in ours if name in own and name not in theirs), None)
        assert {COUNTERPARTS.get(name) for name in theirs} <= {expected}, row


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist(document: Path) -> None:
    text = document.read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    code = "\n".join(a or b for a, b in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, re.S))
    assert set(re.findall(r"(?:^|\s)make ([a-z][a-z0-9-]+)", code)) <= targets
    named = set(re.findall(r"python -m container ([a-z]+)", code))
    assert named <= set(container_command.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_in_documents_compiles(document: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", document.read_text(), re.S):
        compile(code, document.name, "exec")


def test_rows_of_the_comparison_lead_to_a_page() -> None:
    table = (ROOT / "README.md").read_text().split("## Beside other images")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    ours = rows[: next(index for index, row in enumerate(rows) if "**theirs**" in row)]
    assert len(ours) > 10
    assert [row for row in ours if "](docs/" not in row.split("|")[1]] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name
)
def test_forms_for_issues_can_be_read(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert path.name == "config.yml" or {"name", "description", "body"} <= form.keys()


def test_hooks_before_a_commit_name_tools_that_make_installs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    constraints = (ROOT / "constraints.txt").read_text()
    for hook in config["repos"][0]["hooks"]:
        tool = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert tool == "python" or re.search(rf"^{tool}([-_]py)?==", constraints, re.M), tool


def test_an_unknown_command_lists_the_commands() -> None:
    command = [sys.executable, "-m", "container", "nothing"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2
    assert "No such command" in result.stderr
