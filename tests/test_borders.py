"""The architecture as a test: who imports whom, and where the heavy libraries live.

Imports go one way: between the parts of `container/` and of `sagemaker_deploy/`, between the rooms
inside of a part, and between files. An import inside of a function counts. The rules are in
`tests/support/layout/import_rules.py`.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.layout.import_graph import circles, crossings, graph, parsed
from tests.support.layout.import_rules import DEPLOY_HOMES, HOMES, WHOLE_SETTINGS

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "container").rglob("*.py"))
DEPLOY_MODULES = sorted((ROOT / "sagemaker_deploy").rglob("*.py"))
MAX_FILES = 14  # in a folder of source

IMPORTS = graph(ROOT)


def _part(path: Path) -> str:
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


def _libraries(path: Path) -> Iterator[str]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield str(node.module).split(".")[0]


def test_imports_go_down() -> None:
    assert sorted(set(crossings(IMPORTS))) == []


def test_only_composition_roots_import_the_whole_settings() -> None:
    importers = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and node.module == "container.settings.settings"
        if any(alias.name == "Settings" for alias in node.names) and _part(path) != "settings"
    }
    assert importers == WHOLE_SETTINGS


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(IMPORTS) == []


def test_a_folder_lists_few_files() -> None:
    scripts = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "image").rglob("*.*")]
    folders = {path.parent for path in (*MODULES, *DEPLOY_MODULES, *scripts)}
    crowded = {
        folder
        for folder in folders
        if sum(path.suffix in (".py", ".sh") for path in folder.iterdir()) > MAX_FILES
    }
    assert crowded == set()


@pytest.mark.parametrize(
    ("modules", "homes"),
    [(MODULES, HOMES), (DEPLOY_MODULES, DEPLOY_HOMES)],
    ids=["server", "deploy"],
)
def test_libraries_live_where_they_belong(modules: list[Path], homes: dict[str, set[str]]) -> None:
    for path in modules:
        for library in _libraries(path):
            if library in homes:
                assert _part(path) in homes[library], f"{path}: {library} does not live here"


@pytest.mark.parametrize(
    "path", MODULES + DEPLOY_MODULES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_modules_have_docstrings_and_shadow_no_standard_module(path: Path) -> None:
    assert ast.get_docstring(parsed(path)), "a module without a docstring"
    if path.name not in ("__init__.py", "__main__.py"):
        assert path.stem not in sys.stdlib_module_names, "the name of a standard module"


def test_a_frontend_never_loads_torch() -> None:
    code = (
        "import sys, container.frontend.wsgi;"
        "sys.exit(any(name.split('.')[0] == 'torch' and module is not None"
        " for name, module in sys.modules.items()))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_code_is_no_package() -> None:
    assert not (ROOT / "code" / "__init__.py").exists()
    import code
    import pdb

    assert "interact" in dir(code)
    assert pdb.__name__ == "pdb"
