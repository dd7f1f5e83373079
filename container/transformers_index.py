"""Makes `import transformers` fast: the names of its classes come from an index in a file.

transformers reads the source of all its models, 35 MB, at each import, and again when it loads the
first class of a model: half a second or more of processor time in each process of the server
(docs/LOG.md). After `install`, it does so only if there is no index yet, and writes one beside its
bytecode. Run as a program, this module writes the index: the image's build does.

`shut_out` keeps transformers from libraries that it imports although a process does not need them.
"""

import contextlib
import importlib
import marshal
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

# The module that reads the sources, and its function that returns all names of a folder.
MODULE = "transformers.utils.import_utils"
SCAN = "create_import_structure_from_path"


def install() -> None:
    """Let the import of transformers, if it is still to come, use the index."""
    if MODULE not in sys.modules and not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextlib.contextmanager
def shut_out(*names: str) -> Iterator[None]:
    """Let these libraries look as if they were not installed, while the block imports others."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None refuses an import
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


class _Finder(MetaPathFinder):
    """Finds the module that reads the sources, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return spec
        return spec_from_file_location(fullname, loader=_Loader(fullname, spec.loader.path))


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        with contextlib.suppress(AttributeError):  # in another version of transformers
            setattr(module, SCAN, _Index(module).names_in)


class _Index:
    """The names in the folder of all models, as `scan` would find them."""

    def __init__(self, import_utils: ModuleType) -> None:
        self._scan = getattr(import_utils, SCAN)
        package = sys.modules["transformers"]
        folder = Path(str(import_utils.__file__)).parents[1]
        self._models = folder / "models"
        name = f"models.{sys.implementation.cache_tag}.{package.__version__}.index"
        self._file = folder / "__pycache__" / name
        self._names: Any = None

    def names_in(self, module_path: str | Path) -> Any:
        """Return the names of a folder, by its modules and the libraries that they need."""
        if Path(module_path) not in (self._models, self._models / "__init__.py"):
            return self._scan(module_path)
        if self._names is None:
            self._names = self._read()
        if self._names is None:
            self._names = self._scan(self._models)
            if not sys.dont_write_bytecode:
                self.write()
        return self._names

    def _read(self) -> Any:
        """Read the file; None if there is none, or models were added since it was written."""
        with contextlib.suppress(OSError, ValueError, EOFError, TypeError):
            changed_at, names = marshal.loads(self._file.read_bytes())
            if changed_at == self._changed_at():
                return names
        return None

    def write(self) -> None:
        """Write the file, as a whole or not at all."""
        content = marshal.dumps((self._changed_at(), self._names))
        with contextlib.suppress(OSError):  # a folder that is not writable
            self._file.parent.mkdir(exist_ok=True)
            part = self._file.with_suffix(f".{os.getpid()}")
            part.write_bytes(content)
            part.replace(self._file)

    def _changed_at(self) -> int:
        return int(self._models.stat().st_mtime)


def main() -> None:
    """Write the index, also where the interpreter writes no bytecode."""
    sys.dont_write_bytecode = False
    install()
    importlib.import_module("transformers")


if __name__ == "__main__":
    main()
