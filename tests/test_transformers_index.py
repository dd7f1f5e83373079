"""The index of transformers' class names: equal to a scan of its sources, and written once."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from transformers.utils import import_utils

from container.transformers_index import MODULE, SCAN, _Index, install, shut_out

Read = Callable[[], list[str]]


def test_the_index_equals_a_scan() -> None:
    index = getattr(import_utils, SCAN).__self__
    assert isinstance(index, _Index)
    assert index.names_in(index._models) == index._scan(index._models)
    assert index.names_in(index._models / "__init__.py") == index._scan(index._models)
    llama = index._models / "llama"
    assert index.names_in(llama) == index._scan(llama) != {}


def test_a_library_that_is_shut_out_can_be_imported_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with shut_out("wave", "json"):
        assert importlib.util.find_spec("wave") is None
        assert importlib.import_module("json") is json
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("wave")
    assert importlib.import_module("wave")


def test_an_import_that_is_over_is_left_alone() -> None:
    before = [*sys.meta_path]
    install()
    assert MODULE in sys.modules
    assert sys.meta_path == before


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Read the names of a package's models as a new process does; return the folders scanned."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for folder in ("models", "models/llama", "utils"):
        (tmp_path / folder).mkdir()

    def in_new_process() -> list[str]:
        scanned: list[str] = []

        def scan(path: Path) -> dict[str, dict[frozenset[str], dict[str, set[str]]]]:
            scanned.append(path.name)
            return {"llama": {frozenset({"torch"}): {"modeling_llama": {"LlamaModel"}}}}

        module = ModuleType("import_utils")
        module.__file__ = str(tmp_path / "utils" / "import_utils.py")
        setattr(module, SCAN, scan)
        index = _Index(module)
        for path in (tmp_path / "models", str(tmp_path / "models" / "__init__.py")):
            assert index.names_in(path) == scan(Path("expected"))
        return [name for name in scanned if name != "expected"]

    return in_new_process


def _index(folder: Path) -> Path:
    [index] = (folder / "__pycache__").glob("*.index")
    return index


def test_models_are_scanned_once(read: Read) -> None:
    assert [read() for _ in range(3)] == [["models"], [], []]


def test_a_new_model_is_found(read: Read, tmp_path: Path) -> None:
    read()
    os.utime(tmp_path / "models", (1, 1))
    assert [read() for _ in range(2)] == [["models"], []]


@pytest.mark.parametrize("content", [b"", b"\x00", b"text", b"i\x01\x00\x00\x00"])
def test_a_damaged_index_is_written_again(read: Read, tmp_path: Path, content: bytes) -> None:
    read()
    _index(tmp_path).write_bytes(content)
    assert [read() for _ in range(2)] == [["models"], []]


def test_without_bytecode_no_index_is_written(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert [read() for _ in range(2)] == [["models"], ["models"]]
    assert not (tmp_path / "__pycache__").exists()


def test_a_folder_that_is_not_writable_is_no_error(read: Read, tmp_path: Path) -> None:
    (tmp_path / "__pycache__").write_text("a file in the folder's place")
    assert [read() for _ in range(2)] == [["models"], ["models"]]
