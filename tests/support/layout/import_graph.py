"""The graph of imports: its circles, and the imports that break the rules."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.layout.import_rules import ALLOWED, FLOORS

Imports = dict[str, set[str]]


@cache
def parsed(path: Path) -> ast.Module:
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
    for node in ast.walk(parsed(path)):
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
    """Return the modules of both packages that each module imports."""
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
