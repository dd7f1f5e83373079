"""The architecture as a test: who imports whom, and where the heavy libraries live.

Imports go one way: between the parts of `container/` and of `sagemaker_deploy/`, between the rooms
inside of a part, and between files. An import inside of a function counts.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "container").rglob("*.py"))
DEPLOY_MODULES = sorted((ROOT / "sagemaker_deploy").rglob("*.py"))
MAX_FILES = 14  # in a folder of source

# Parts of container/: what each may import besides itself.
LEAVES = {"errors", "logs", "messages", "settings"}
ALLOWED = {
    "errors": set(),
    "logs": set(),
    "machine": set(),
    "garbage": set(),
    "files": set(),
    "background": set(),
    "transformers_index": set(),
    "body_lines": {"errors"},
    "content": {"body_lines", "errors"},
    "settings": {"errors"},
    "messages": {"errors"},
    "ipc": {"errors", "messages"},
    "text": {"errors", "files", "garbage", "transformers_index"},
    "images": {"errors", "messages", "text"},
    "engine": LEAVES | {"ipc"},
    "grammar": {"errors", "engine", "messages", "text"},
    "embedding": LEAVES | {"ipc"},
    "handlers": LEAVES | {"body_lines", "content", "files", "ipc", "machine"},
    "lifecycle": LEAVES | {"files", "handlers", "ipc", "machine"},
    "model": LEAVES
    | {"background", "embedding", "engine", "files", "grammar", "images", "ipc", "lifecycle"}
    | {"machine", "text"},
    "frontend": LEAVES
    | {"body_lines", "content", "files", "grammar", "images", "ipc", "machine", "text"}
    | {"transformers_index"},
    "cli": LEAVES | {"lifecycle", "machine", "model"},
    "__main__": LEAVES
    | {"cli", "embedding", "engine", "garbage", "handlers", "ipc", "lifecycle", "model", "text"}
    | {"transformers_index"},
    "__init__": set(),
}
# Rooms inside of a part, the lowest floor first. A file may import from its own room and from the
# floors below; a name without a folder is a file.
FLOORS = {
    "container.settings": [
        ["process_env", "casts", "tgi", "order", "other_images"],
        ["field"],
        ["engine", "model", "requests", "server"],
        ["settings"],
        ["page"],
    ],
    "container.cli": [["chat_client", "doctor"], ["chat"], ["commands"]],
    "container.messages": [["common", "images"], ["engine", "embedder", "handler"]],
    "container.handlers": [
        [
            "answer_encoding",
            "answer_window",
            "context",
            "user_code",
            "requirements",
            "engine_model",
            "worker_pool",
        ],
        ["process_bounds"],
        ["hooks", "tasks"],
        ["invocation", "invocation_server"],
        ["worker_process"],
        ["factories"],
    ],
    "container.ipc": [["parent_watch", "heartbeat"], ["backend_server"], ["step_server"]],
    # Native code reads what clients wrote on the last floor only, in processes that may die.
    "container.grammar": [
        ["forms", "schema", "protocol"],
        ["shape", "constraint"],
        ["complexity", "client"],
        ["json_schema"],
        ["spec", "argument_pairs"],
        ["call_arguments"],
        ["message"],
        ["process"],
        ["fork_server"],
    ],
    "container.grammar.schema": [
        ["tree", "patterns"],
        ["disjoint", "satisfiable"],
        ["negation"],
        ["lookahead"],
        ["keywords"],
    ],
    "container.lifecycle": [
        ["child", "failure", "listener", "other_handlers", "terminal"],
        ["announcement"],
        ["startup_report"],
        ["shutdown", "backends"],
        ["supervisor"],
        ["serve"],
    ],
    "container.model": [
        [
            "hf_config",
            "async_copy",
            "encoder_outputs",
            "fallbacks",
            "forward_batch",
            "kernels",
            "progress_bars",
            "torch_versions",
        ],
        ["reference_check", "kv_cache", "states"],
        ["attention"],
        ["layers", "vision", "encoder_decoder"],
        ["formats", "lora", "sampling", "checks"],
        ["loaded_model"],
        ["parallel"],
        ["execution"],
        ["optimize"],
        ["paged_decoder"],
        ["loading"],
        ["embedding"],
        ["engine_texts"],
        ["engine_loader", "embedder_loader", "rank_worker"],
    ],
    "container.frontend": [
        ["web.json_size"],
        ["clients", "web.error_responses", "web.request_body"],
        ["generation"],
        ["chat", "embedding"],
        ["observability"],
        ["web"],
        ["apis", "multi_model"],
        ["app"],
        ["wsgi", "gunicorn_worker"],
        ["gunicorn_conf"],
    ],
    "container.frontend.apis": [
        ["text_inputs", "text_dialect", "grammar_fields", "generation_dialect"],
        ["openai", "embeddings"],
        ["anthropic", "tei", "tgi", "llm_serving"],
        ["sagemaker", "health"],
        ["docs"],
    ],
    "sagemaker_deploy": [
        ["errors", "sections", "service_model"],
        ["aws", "config"],
        ["plan", "invoke"],
        ["batch_results", "execute", "facts", "load", "local", "proxy", "templates"],
        ["account", "replay"],
        ["diagnosis"],
        ["commands"],
        ["__main__"],
    ],
    "sagemaker_deploy.replay": [["records"], ["compare", "send"], ["report"]],
    "sagemaker_deploy.proxy": [
        ["keys", "metrics", "runtime", "targets"],
        ["translation"],
        ["plans"],
        ["endpoint", "error_bodies", "reading", "request_log"],
        ["request_stats"],
        ["handler"],
        ["app"],
        ["serve"],
    ],
    "sagemaker_deploy.local": [
        ["refusals"],
        ["containers"],
        ["control_plane"],
        ["invocations"],
        ["server"],
    ],
}

# The parts that may import these libraries.
HOMES = {
    "torch": {"model", "handlers"},
    "flask": {"frontend"},
    "llguidance": {"grammar"},
    "gevent": {"frontend"},
    "zmq": {"frontend", "handlers", "ipc"},
    "transformers": {"images", "model", "text", "handlers"},
    "PIL": {"content", "images"},
    "urllib3": {"cli", "frontend"},
    "sentence_transformers": {"model"},
    "triton": {"model"},
    "boto3": set(),
    "sagemaker": set(),
}
DEPLOY_HOMES = {
    "boto3": {"aws"},
    "botocore": {"aws", "proxy", "service_model"},
    "aiohttp": {"proxy"},
    "flask": {"local"},
    "click": {"commands"},
    "rich": {"commands"},
    "moto": {"commands"},
    "sagemaker": set(),
    "container": set(),
}

Imports = dict[str, set[str]]


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def modules_of(root: Path, *packages: str) -> dict[str, Path]:
    """Every module of these packages, by its name."""
    found = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """The modules among `modules` that a file imports, wherever in it."""
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in modules:
                    yield whole
                elif node.module in modules:
                    yield node.module


def graph(root: Path) -> Imports:
    """What each module of both packages imports of them."""
    modules = modules_of(root, "container", "sagemaker_deploy")
    return {name: set(imports_of(path, modules)) - {name} for name, path in modules.items()}


def circles(imports: Imports) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in imports.get(name, ()):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    for name in imports:
        if name not in index:
            visit(name)
    return found


def floor_of(name: str, package: str) -> tuple[int, str] | None:
    """The floor and the room of a module inside of a package; the longest entry counts."""
    inner = name.removeprefix(package + ".")
    best = None
    for number, rooms in enumerate(FLOORS[package]):
        for room in rooms:
            if (inner == room or inner.startswith(room + ".")) and (
                best is None or len(room) > len(best[1])
            ):
                best = number, room
    return best


def crossings(imports: Imports) -> Iterator[str]:
    """Imports that go up, or sideways between rooms."""
    for name, others in sorted(imports.items()):
        for other in sorted(others):
            if name.startswith("container.") and other.startswith("container."):
                part, used = name.split(".")[1], other.split(".")[1]
                if used != part and used not in ALLOWED[part]:
                    yield f"{name} imports {other}: {part} must not use {used}"
            for package in FLOORS:
                if not (name.startswith(package + ".") and other.startswith(package + ".")):
                    continue
                here, there = floor_of(name, package), floor_of(other, package)
                if here is None or there is None:
                    yield f"{name if here is None else other} is on no floor of {package}"
                elif there[0] > here[0] or (there[0] == here[0] and there[1] != here[1]):
                    yield f"{name} imports {other}: {here[1]} is not above {there[1]}"


IMPORTS = graph(ROOT)


def _part(path: Path) -> str:
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


def _libraries(path: Path) -> Iterator[str]:
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield str(node.module).split(".")[0]


def test_imports_go_down() -> None:
    assert sorted(set(crossings(IMPORTS))) == []


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
    assert ast.get_docstring(_parsed(path)), "a module without a docstring"
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
