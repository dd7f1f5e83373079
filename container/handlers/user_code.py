"""Find the user's code and the hooks that it defines, without running it.

The places are those of SageMaker's SDK and toolkits: SAGEMAKER_SUBMIT_DIRECTORY if it is a folder
(the SDK also sends empty strings and `file://` addresses), then `code/` in the model's folder, then
`/opt/ml/model/code` and `/opt/ml/code`. In an archive that has all in one folder, `code/` is in
that folder. Code of a Hub repository is never used.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from container.errors import ModelLoadError
from container.settings.process_env import SAGEMAKER_MODEL_DIR, model_root
from container.settings.server import HandlerSettings

DEFAULT_PROGRAM = "inference.py"
HOOKS = ("model_fn", "input_fn", "predict_fn", "output_fn", "transform_fn")
EVERYTHING = frozenset({*HOOKS})


@dataclass(frozen=True, slots=True)
class UserCode:
    """A file with the user's functions; `hooks` are the names of those it defines."""

    path: Path
    hooks: frozenset[str]

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self.path.parent

    @property
    def requirements(self) -> Path | None:
        """The requirements.txt in the folder of the file, if there is one."""
        path = self.folder / "requirements.txt"
        return path if path.is_file() else None

    @property
    def loads_own_model(self) -> bool:
        """Whether the code loads its own model; otherwise it gets the built-in engine."""
        return bool(self.hooks & {"model_fn"})


def find_code(settings: HandlerSettings, model_id: str | None) -> UserCode | None:
    """Find the program, or None. Raises ModelLoadError for one that is no Python."""
    program = settings.program or DEFAULT_PROGRAM
    name = program if program.endswith(".py") else f"{program}.py"
    for folder in code_folders(settings.submit_directory, model_id):
        path = folder / name
        if path.is_file():
            return UserCode(path.resolve(), _hooks(path))
    return None


def missing_code(settings: HandlerSettings, model_id: str | None) -> str | None:
    """Return a warning if the program is set but does not exist, else None."""
    directory = settings.submit_directory or ""
    if not (settings.program or directory) or find_code(settings, model_id) is not None:
        return None
    looked = ", ".join(str(folder) for folder in code_folders(directory, model_id))
    hint = "pack it as code/inference.py in model.tar.gz"
    if directory.startswith("file://"):
        hint = (
            "the SDK did not ship it (SAGEMAKER_SUBMIT_DIRECTORY is a file:// address): give "
            "model_data as a model.tar.gz with the entry point, or pack code/ into it yourself"
        )
    elif directory.startswith("s3://"):
        hint = "code is not fetched from S3: pack code/ into model.tar.gz"
    named = settings.program or DEFAULT_PROGRAM
    return f"{named} is named as user code and is MISSING (looked in {looked}); {hint}"


def code_folders(submit_directory: str | None, model_id: str | None) -> list[Path]:
    """List the folders that may hold user code; the first one with the program wins."""
    folders = []
    directory = submit_directory or ""
    if directory.startswith("/"):
        folders.append(Path(directory))
    if model_id and Path(model_id).is_dir():
        folders += _code_in(Path(model_id))
    folders += [*_code_in(SAGEMAKER_MODEL_DIR), Path("/opt/ml/code")]
    return list(dict.fromkeys(folders))


def _code_in(model: Path) -> list[Path]:
    """List the places of `code/` in a model's folder, or in the only folder of an archive."""
    inner = list(model.glob("*/code"))
    return [model / "code", model_root(model) / "code", *(inner if len(inner) == 1 else [])]


def _hooks(path: Path) -> frozenset[str]:
    """Return the names of the hooks at the top level of a module, without running it."""
    try:
        tree = ast.parse(path.read_bytes())  # which may have a mark or name its encoding
    except (SyntaxError, ValueError) as error:
        raise ModelLoadError(f"{path}: not valid Python: {error}") from None
    names: set[str] = set()
    for node in _top_level(tree.body):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.ImportFrom(names=aliases):
                if any(alias.name == "*" for alias in aliases):
                    return EVERYTHING  # unknown names: assume every hook, model_fn too
                names |= {alias.asname or alias.name for alias in aliases}
    return frozenset(names & set(HOOKS))


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those under `if` and `try` included."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _top_level(node.body)
            yield from _top_level(node.orelse)
            for handler in getattr(node, "handlers", ()):
                yield from _top_level(handler.body)
