"""The architecture as a test: who imports whom, and where the heavy libraries live."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "container").rglob("*.py"))
DEPLOY_MODULES = sorted((ROOT / "sagemaker_deploy").rglob("*.py"))
# What each part may import of its own package; the root modules are at the bottom.
ROOT_MODULES = {"errors", "layout", "logs", "messages", "settings"}
ALLOWED = {
    "engine": ROOT_MODULES | {"worker"},
    "grammar": {"errors", "engine", "text"},
    "embedding": ROOT_MODULES | {"embed_messages", "worker"},
    "embed_messages": {"messages"},
    "images": {"errors", "messages", "text"},
    "model": ROOT_MODULES
    | {"children", "embed_messages", "embedding", "engine", "grammar", "images", "text", "worker"},
    "text": {"errors"},
    "frontend": ROOT_MODULES
    | {"content", "embed_messages", "grammar", "handler_messages", "images", "text"},
    "handlers": ROOT_MODULES | {"handler_messages", "content"},
    "handler_messages": {"messages"},
    "content": {"errors"},
    "messages": {"errors"},
    "worker": {"errors", "messages"},
    "settings": {"errors"},
    "errors": set(),
    "logs": set(),
    "tgi_settings": set(),
    "settings_page": {"settings", "tgi_settings"},
    "layout": set(),
    "diagnosis": {"errors", "handlers", "layout", "settings", "tgi_settings"},
    "children": {"errors"},
    "supervisor": {"children", "diagnosis", "handlers", "errors", "settings", "tgi_settings"},
    "__main__": {"errors", "logs", "settings", "settings_page", "supervisor"}
    | {"embedding", "engine", "model", "worker", "handlers"},
}
HOMES = {
    "torch": {"model", "handlers"},
    "flask": {"frontend"},
    "llguidance": {"grammar"},
    "gevent": {"frontend"},
    "zmq": {"frontend", "worker", "handlers"},
    "transformers": {"images", "model", "text", "handlers"},
    "PIL": {"content", "images"},
    "urllib3": {"frontend"},
    "sentence_transformers": {"model"},
    "triton": {"model"},
    "boto3": set(),
    "sagemaker": set(),
}
# The laptop's side: the lowest parts first. Only `aws` calls AWS; `local` reads botocore's data.
DEPLOY_ALLOWED = {
    "errors": set(),
    "service_model": set(),
    "aws": {"errors"},
    "config": {"errors"},
    "plan": {"config", "errors"},
    "facts": {"aws", "config", "errors", "plan"},
    "execute": {"aws", "errors", "plan"},
    "invoke": {"aws", "errors"},
    "load": {"errors", "invoke"},
    "local": {"aws", "errors", "service_model"},
    "commands": {
        "aws",
        "config",
        "errors",
        "execute",
        "facts",
        "invoke",
        "load",
        "local",
        "plan",
    },
    "__main__": {"commands"},
    "__init__": set(),
}
DEPLOY_HOMES = {
    "boto3": {"aws"},
    "botocore": {"aws", "service_model"},
    "flask": {"local"},
    "click": {"commands"},
    "rich": {"commands"},
    "moto": {"commands"},
    "sagemaker": set(),
    "container": set(),
}


def _part(path: Path) -> str:
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    part = _part(path)
    for name in _imports(path):
        top, *rest = name.split(".")
        if top == "container" and rest and part != "__init__":
            assert rest[0] in ALLOWED[part] | {part, "__version__"}, f"{part} imports {name}"
        if top in HOMES:
            assert part in HOMES[top], f"{top} does not live in {part}"


@pytest.mark.parametrize("path", DEPLOY_MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_of_the_deploy_side_point_one_way(path: Path) -> None:
    part = _part(path)
    for name in _imports(path):
        top, *rest = name.split(".")
        if top == "sagemaker_deploy":
            assert rest[0] in DEPLOY_ALLOWED[part] | {part}, f"{part} imports {name}"
        if top in DEPLOY_HOMES:
            assert part in DEPLOY_HOMES[top], f"{top} does not live in {part}"


@pytest.mark.parametrize(
    "path", MODULES + DEPLOY_MODULES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_module_says_what_it_owns_and_shadows_nothing(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "a module without a docstring"
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
