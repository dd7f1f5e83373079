"""Programs of users are found, read in their encoding, and refused by name."""

import json
from pathlib import Path

import pytest

from container.errors import ModelLoadError
from container.handlers.hooks import load_hooks
from container.handlers.user_code import find_code, missing_code
from container.settings.server import HandlerSettings
from tests.handlers.programs import invoke, load_handler, write_code

ACCENTS = """def model_fn(model_dir):
    return "é"
def predict_fn(data, model):
    return model
"""


@pytest.mark.parametrize(
    ("first_line", "encoding"),
    [
        ("", "utf-8-sig"),
        ("# -*- coding: utf-8 -*-\n", "utf-8-sig"),
        ("# -*- coding: latin-1 -*-\n", "latin-1"),
        ("#!/usr/bin/python\n# vim: set fileencoding=cp1252 :\n", "cp1252"),
        ("\r\n", "utf-8"),
    ],
)
def test_a_program_is_read_in_the_encoding_that_python_reads(
    tmp_path: Path, first_line: str, encoding: str
) -> None:
    _, parts = invoke(load_handler(tmp_path, first_line + ACCENTS, encoding=encoding), "hi")
    assert json.loads(b"".join(parts)) == "é"


@pytest.mark.parametrize(
    "raw", [b"# coding: latin-9000\n", b"x = '\xe9'\n", b"x = 1\x00\n", b"def f(:\n"]
)
def test_a_program_that_python_cannot_read_is_refused_by_name(tmp_path: Path, raw: bytes) -> None:
    settings = write_code(tmp_path, "")
    (tmp_path / "code" / str(settings.program)).write_bytes(raw)
    with pytest.raises(ModelLoadError, match=f"{settings.program}: not valid Python"):
        find_code(settings, str(tmp_path))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def model_fn(: pass", "not valid Python"),
        ("def model_fn(): pass", "model_fn must take 1 arguments"),
        ("def predict_fn(a, b, c, d): pass", "predict_fn must take 2 arguments"),
        ("def model_fn(d): raise OSError('no weights')", "model_fn failed: OSError: no weights"),
    ],
)
def test_code_that_cannot_work_ends_the_start_with_the_reason(
    tmp_path: Path, program: str, reason: str
) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        load_handler(tmp_path, program)


def test_a_file_named_like_a_module_of_python_is_refused(tmp_path: Path) -> None:
    settings = write_code(tmp_path, "")
    (tmp_path / "code" / "json.py").touch()
    code = find_code(settings, str(tmp_path))
    assert code is not None
    with pytest.raises(ModelLoadError, match=r"rename json\.py"):
        load_hooks(code)


def test_the_users_other_files_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_words.py").write_text("WORD = 'hello'")
    program = "from my_words import WORD\ndef predict_fn(data, model): return WORD"
    assert invoke(load_handler(tmp_path, program), {})[1] == [b'"hello"']


@pytest.mark.parametrize(
    ("program", "brings"),
    [
        ("def predict_fn(data, model): pass", False),
        ("def model_fn(d): pass", True),
        ("async def model_fn(d): pass", True),
        ("from mine import model_fn", True),
        ("from mine import *", True),
        ("try:\n    from mine import load as model_fn\nexcept ImportError: pass", True),
        ("model_fn = print", True),
        ("class A:\n    def model_fn(self): pass", False),
    ],
)
def test_model_fn_is_recognised_without_running_code(
    tmp_path: Path, program: str, brings: bool
) -> None:
    code = find_code(write_code(tmp_path, program), str(tmp_path))
    assert code is not None
    assert code.loads_own_model is brings


def test_a_missing_program_is_named_with_the_cause(tmp_path: Path) -> None:
    assert missing_code(HandlerSettings(), str(tmp_path)) is None
    warning = missing_code(
        HandlerSettings(program="train.py", submit_directory="file://code"), str(tmp_path)
    )
    assert warning is not None
    assert "train.py is named as user code and is MISSING" in warning
    assert "the SDK did not ship it" in warning
    assert missing_code(write_code(tmp_path, ""), str(tmp_path)) is None


def test_the_submit_directory_wins_when_it_is_a_folder(tmp_path: Path) -> None:
    write_code(tmp_path, "")
    other = tmp_path / "other"
    other.mkdir()
    (other / "inference.py").touch()
    code = find_code(HandlerSettings(submit_directory=str(other)), str(tmp_path))
    assert code is not None
    assert code.path == other / "inference.py"


def test_code_in_the_only_folder_of_an_archive_is_found(tmp_path: Path) -> None:
    for name in ("model", "other"):
        (tmp_path / name / "code").mkdir(parents=True)
    program = tmp_path / "model" / "code" / "inference.py"
    program.touch()
    (tmp_path / "model" / "config.json").touch()
    assert _code_path(tmp_path) == program
    (tmp_path / "model" / "config.json").unlink()
    assert _code_path(tmp_path) is None  # either folder may be meant
    (tmp_path / "other" / "code").rmdir()
    assert _code_path(tmp_path) == program


def _code_path(folder: Path) -> Path | None:
    code = find_code(HandlerSettings(), str(folder))
    return None if code is None else code.path


def test_the_example_loads_by_path() -> None:
    root = Path(__file__).parents[2]
    code = find_code(HandlerSettings(submit_directory=str(root / "code")), None)
    assert code is not None
    assert set(load_hooks(code)) == {"input_fn", "predict_fn"}
