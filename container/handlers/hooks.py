"""The user's functions: loaded by path, called with or without `context`, awaited if async.

Signatures are those of the Hugging Face inference toolkit 2.6 and sagemaker-inference 1.10:
`model_fn(model_dir)`, `input_fn(body, content_type)`, `predict_fn(data, model)`,
`output_fn(prediction, accept)`, or `transform_fn(model, body, content_type, accept)` in place of
the last three; each may take `context` as one more argument.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from container.errors import ModelLoadError
from container.handlers.context import Context
from container.handlers.user_code import HOOKS, UserCode

NUM_ARGUMENTS = {
    "model_fn": 1, "input_fn": 2, "predict_fn": 2, "output_fn": 2, "transform_fn": 4,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hook:
    """One of the user's functions."""

    name: str
    function: Callable[..., Any]
    takes_context: bool

    @property
    def is_async(self) -> bool:
        """Whether the function is async."""
        return inspect.iscoroutinefunction(self.function) or inspect.isasyncgenfunction(
            self.function
        )

    def __call__(self, *arguments: Any, context: Context) -> Any:
        """Call the function; the result may be a coroutine or a generator."""
        return self.function(*arguments, *([context] if self.takes_context else []))


Hooks = dict[str, Hook]


def load_hooks(code: UserCode) -> Hooks:
    """Run the user's module. Raises ModelLoadError for clashes and wrong signatures."""
    module = _load_module(code)
    hooks = {
        name: _hook(name, function, code.path)
        for name in HOOKS
        if callable(function := getattr(module, name, None))
    }
    others = {"input_fn", "predict_fn", "output_fn"} & hooks.keys()
    if "transform_fn" in hooks and others:
        raise ModelLoadError(
            f"{code.path}: transform_fn replaces input_fn, predict_fn and output_fn; "
            f"it also defines {', '.join(sorted(others))}"
        )
    return hooks


def _load_module(code: UserCode) -> ModuleType:
    _check_clashes(code.folder)
    # Last on the path, so that a user's module never shadows one of the server or of Python.
    sys.path.append(str(code.folder))
    name = code.path.stem
    spec = importlib.util.spec_from_file_location(name, code.path)
    if spec is None or spec.loader is None:
        raise ModelLoadError(f"{code.path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that the user's other files may import it
    spec.loader.exec_module(module)
    return module


def _check_clashes(folder: Path) -> None:
    """Raise ModelLoadError when a file is named like a module that `import` would find first."""
    files = [path for path in folder.iterdir() if path.suffix == ".py"]
    packages = [path for path in folder.iterdir() if (path / "__init__.py").is_file()]
    clashes = [path.name for path in files + packages if _is_importable(path.stem)]
    if clashes:
        raise ModelLoadError(
            f"{folder}: rename {', '.join(sorted(clashes))}: Python or an installed package has a "
            "module of that name, which would be imported instead"
        )


def _is_importable(name: str) -> bool:
    if name == "__init__":
        return False
    try:
        return name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _hook(name: str, function: Callable[..., Any], path: Path) -> Hook:
    needed = NUM_ARGUMENTS[name]
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return Hook(name, function, takes_context=False)
    positional = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    required = [argument for argument in positional if argument.default is argument.empty]
    has_context = len(positional) > needed and (
        len(required) > needed or positional[needed].name in ("context", "ctx")
    )
    if len(positional) < needed or len(required) > needed + 1:
        raise ModelLoadError(
            f"{path}: {name} must take {needed} arguments, or {needed + 1} with context; it takes "
            f"{len(positional)}"
        )
    return Hook(name, function, has_context)
