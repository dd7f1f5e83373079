"""The user's functions: found, loaded, called with or without context, and their results."""

import itertools
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from container.errors import HandlerFailed, ModelLoadError, ServingError
from container.handlers.hooks import load_hooks
from container.handlers.invocation import ClientDisconnected, Handler
from container.handlers.user_code import find_code, missing_code
from container.messages.handler import AnswerHead, AnswerPart, Invoke
from container.settings.server import HandlerSettings

_names = itertools.count()


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith(("inference", "my_words"))]:
        del sys.modules[name]


def _write(folder: Path, program: str, encoding: str = "utf-8") -> HandlerSettings:
    name = f"inference_{next(_names)}.py"
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / name).write_text(program, encoding)
    return HandlerSettings(program=name)


def _handler(folder: Path, program: str, model: object = None, encoding: str = "utf-8") -> Handler:
    code = find_code(_write(folder, program, encoding), str(folder))
    assert code is not None
    handler = Handler(load_hooks(code), folder, None if code.loads_own_model else lambda: model)
    handler.load()
    return handler


def _invoke(
    handler: Handler, body: object, kind: str = "application/json", accept: str = "", **headers: str
) -> tuple[AnswerHead, list[bytes]]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    head, *parts = handler.answer(Invoke(1, raw, kind, accept, named), threading.Event())
    assert isinstance(head, AnswerHead)
    assert all(isinstance(part, AnswerPart) for part in parts)
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
    return head, [part.data for part in parts]


PLAIN = """
def model_fn(model_dir):
    return {"dir": model_dir}
def input_fn(body, content_type):
    return [type(body).__name__, content_type]
def predict_fn(data, model):
    return data + sorted(model)
def output_fn(prediction, accept):
    return accept + ":" + "|".join(prediction)
"""


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
    _, parts = _invoke(_handler(tmp_path, first_line + ACCENTS, encoding=encoding), "hi")
    assert json.loads(b"".join(parts)) == "é"


@pytest.mark.parametrize(
    "raw", [b"# coding: latin-9000\n", b"x = '\xe9'\n", b"x = 1\x00\n", b"def f(:\n"]
)
def test_a_program_that_python_cannot_read_is_refused_by_name(tmp_path: Path, raw: bytes) -> None:
    settings = _write(tmp_path, "")
    (tmp_path / "code" / str(settings.program)).write_bytes(raw)
    with pytest.raises(ModelLoadError, match=f"{settings.program}: not valid Python"):
        find_code(settings, str(tmp_path))


def test_the_four_functions_are_called_in_turn(tmp_path: Path) -> None:
    head, parts = _invoke(_handler(tmp_path, PLAIN), {}, "application/json; charset=utf-8")
    assert parts == [b"application/json:str|application/json|dir"]
    assert (head.status, head.content_type) == (200, "application/json")


def test_bodies_are_text_for_json_and_csv_and_bytes_else(tmp_path: Path) -> None:
    handler = _handler(tmp_path, PLAIN)
    for kind, expected in (("text/csv", "str"), ("text/plain", "bytes"), ("x/y", "bytes")):
        assert _invoke(handler, b"a", kind)[1][0].split(b":")[1].startswith(expected.encode())


def test_context_is_given_to_those_that_take_it(tmp_path: Path) -> None:
    program = """
def model_fn(model_dir, context):
    return context.system_properties["model_dir"] == model_dir
def input_fn(body, content_type, context):
    return context.get_request_header(0, "X-Thing")
def predict_fn(data, model, context=None):
    context.set_response_status(202)
    context.set_response_header(0, "X-Back", data)
    return [data, model]
def output_fn(prediction, accept, context):
    context.set_response_content_type(0, "text/x-own")
    return repr(prediction)
"""
    head, parts = _invoke(_handler(tmp_path, program), {}, x_thing="here")
    assert parts == [b"['here', True]"]
    assert (head.status, head.content_type) == (202, "text/x-own")
    assert head.headers == {"X-Back": "here"}


def test_output_fn_may_name_the_content_type(tmp_path: Path) -> None:
    program = """
def model_fn(model_dir): return None
def predict_fn(data, model): return data
def output_fn(prediction, accept): return "a,b", "text/csv"
"""
    head, parts = _invoke(_handler(tmp_path, program), 1)
    assert (head.content_type, parts) == ("text/csv", [b"a,b"])


def test_transform_fn_replaces_the_other_three(tmp_path: Path) -> None:
    program = """
def model_fn(model_dir): return "model"
def transform_fn(model, body, content_type, accept): return ",".join([model, body, accept])
"""
    assert _invoke(_handler(tmp_path, program), b"7", "text/csv", "text/csv")[1] == [
        b"model,7,text/csv"
    ]
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ModelLoadError, match="transform_fn replaces"):
        _handler(other, program + "def predict_fn(data, model): pass")


def test_the_defaults_are_those_of_the_hugging_face_toolkit(tmp_path: Path) -> None:
    program = """
def model_fn(model_dir):
    return lambda inputs, **parameters: {"inputs": inputs, "parameters": parameters}
"""
    handler = _handler(tmp_path, program)
    body = {"inputs": "a", "parameters": {"top_k": 2}}
    assert json.loads(_invoke(handler, body)[1][0]) == body
    assert json.loads(_invoke(handler, {"x": 1})[1][0])["inputs"] == {"x": 1}
    assert json.loads(_invoke(handler, b"inputs\na\n", "text/csv")[1][0])["inputs"] == ["a"]
    head, parts = _invoke(handler, {"inputs": 1}, accept="application/jsonlines")
    assert (head.content_type, parts) == (
        "application/jsonlines",
        [b'{"inputs":1,"parameters":{}}\n'],
    )


def test_a_string_prediction_is_json(tmp_path: Path) -> None:
    handler = _handler(tmp_path, "def predict_fn(data, model): return 'é\"'")
    assert _invoke(handler, {})[1] == ['"é\\""'.encode()]
    assert _invoke(handler, {}, accept="text/plain")[1] == ['é"'.encode()]


@pytest.mark.parametrize(
    "program",
    [
        "def predict_fn(data, model):\n    yield 'a'\n    yield 'b'",
        "async def predict_fn(data, model):\n    yield 'a'\n    yield 'b'",
        "def transform_fn(model, body, kind, accept):\n    yield 'a'\n    yield b'b'",
        "def predict_fn(data, model): return iter_()\ndef iter_():\n    yield 'a'\n    yield 'b'",
    ],
)
def test_generators_stream_and_end_with_a_newline(tmp_path: Path, program: str) -> None:
    head, parts = _invoke(_handler(tmp_path, program), {})
    assert head.is_stream
    assert head.content_type == "text/plain; charset=utf-8"
    assert parts == [b"a", b"b", b"\n"]


def test_streamed_objects_are_json_lines_or_events(tmp_path: Path) -> None:
    handler = _handler(tmp_path, "def predict_fn(data, model):\n    yield {'n': 1}\n    yield 2")
    head, parts = _invoke(handler, {})
    assert (head.content_type, parts) == ("application/jsonlines", [b'{"n":1}\n', b"2\n", b""])
    head, parts = _invoke(handler, {}, accept="text/event-stream")
    assert (head.content_type, parts) == (
        "text/event-stream",
        [b'data: {"n":1}\n\n', b"data: 2\n\n", b""],
    )


def test_output_fn_is_called_for_each_streamed_part(tmp_path: Path) -> None:
    program = """
def predict_fn(data, model):
    yield 1
    yield 2
def output_fn(part, accept):
    return f"<{part}>"
"""
    assert _invoke(_handler(tmp_path, program), {})[1] == [b"<1>", b"<2>", b"\n"]


def test_an_empty_generator_is_an_empty_answer(tmp_path: Path) -> None:
    program = "def predict_fn(data, model):\n    return\n    yield"
    assert _invoke(_handler(tmp_path, program), {})[1] == [b""]


def test_async_functions_are_awaited_and_run_side_by_side(tmp_path: Path) -> None:
    program = """
import asyncio
both = asyncio.Barrier(2)
async def input_fn(body, content_type):
    return body
async def predict_fn(data, model):
    await both.wait()
    return data
"""
    handler = _handler(tmp_path, program)
    assert handler.is_concurrent
    responses: list[list[bytes]] = []
    threads = [
        threading.Thread(target=lambda: responses.append(_invoke(handler, 5)[1])) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert responses == [[b'"5"'], [b'"5"']]


def test_a_disconnect_closes_the_generator(tmp_path: Path) -> None:
    program = """
closed = []
def predict_fn(data, model):
    try:
        while True:
            yield "a"
    finally:
        closed.append(True)
def output_fn(part, accept): return str(closed)
"""
    handler = _handler(tmp_path, program.replace("def output_fn", "def _"))
    event = threading.Event()
    answer = handler.answer(Invoke(1, b"{}", "application/json", ""), event)
    next(answer), next(answer)
    event.set()
    with pytest.raises(ClientDisconnected):
        list(answer)
    assert sys.modules[f"inference_{next(_names) - 1}"].closed == [True]


def test_the_clients_faults_are_400_and_the_codes_faults_500(tmp_path: Path) -> None:
    program = """
def input_fn(body, content_type): return int(body)
def predict_fn(data, model): return 1 // data
"""
    handler = _handler(tmp_path, program)
    with pytest.raises(ServingError, match="input_fn: ValueError: invalid literal") as caught:
        _invoke(handler, b"x")
    assert caught.value.kind == "malformed"
    with pytest.raises(ServingError, match="user code failed: ZeroDivisionError") as caught:
        _invoke(handler, b"0")
    assert caught.value.kind == "handler"


def test_an_exception_with_a_status_keeps_it(tmp_path: Path) -> None:
    program = """
class Teapot(Exception):
    status_code = 418
def predict_fn(data, model): raise Teapot("short and stout")
"""
    head, parts = _invoke(_handler(tmp_path, program), {})
    assert head.status == 418
    assert json.loads(parts[0])["error"] == "short and stout"


def test_wrong_types_are_refused_with_those_that_work(tmp_path: Path) -> None:
    handler = _handler(tmp_path, "def predict_fn(data, model): return 1")
    with pytest.raises(ServingError, match="supported are") as caught:
        _invoke(handler, b"", "application/zip")
    assert caught.value.kind == "media_type"
    with pytest.raises(ServingError, match="offered are") as caught:
        _invoke(handler, {}, accept="image/png")
    assert caught.value.kind == "not_acceptable"


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
        _handler(tmp_path, program)


def test_a_file_named_like_a_module_of_python_is_refused(tmp_path: Path) -> None:
    settings = _write(tmp_path, "")
    (tmp_path / "code" / "json.py").touch()
    code = find_code(settings, str(tmp_path))
    assert code is not None
    with pytest.raises(ModelLoadError, match=r"rename json\.py"):
        load_hooks(code)


def test_the_users_other_files_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_words.py").write_text("WORD = 'hello'")
    program = "from my_words import WORD\ndef predict_fn(data, model): return WORD"
    assert _invoke(_handler(tmp_path, program), {})[1] == [b'"hello"']


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
    code = find_code(_write(tmp_path, program), str(tmp_path))
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
    assert missing_code(_write(tmp_path, ""), str(tmp_path)) is None


def test_the_submit_directory_wins_when_it_is_a_folder(tmp_path: Path) -> None:
    _write(tmp_path, "")
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


CHOOSING = """
def model_fn(model_dir, context): pass
def predict_fn(data, model, context):
    context.response_status = data.get("status", 200)
    context.response_content_type = data.get("kind")
    context.response_headers = data.get("headers", {})
    return {"ok": True}
"""


@pytest.mark.parametrize(
    "body",
    [
        {"status": 99}, {"status": 700}, {"status": 10**30}, {"status": "ok"}, {"status": None},
        {"kind": "text/plain\r\nX: y"}, {"kind": 5},
        {"headers": {"X": "a\r\nSet-Cookie: b"}}, {"headers": {"a b": "c"}},
        {"headers": {"": "c"}}, {"headers": ["X"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_head_that_http_does_not_allow_fails_its_invocation(tmp_path: Path, body: dict) -> None:
    with pytest.raises(HandlerFailed, match="user code"):
        _invoke(_handler(tmp_path, CHOOSING), body)


def test_headers_are_text_and_do_not_frame_the_answer(tmp_path: Path) -> None:
    headers = {
        "X-Count": 5,
        "Content-Length": "3",
        "Transfer-Encoding": "chunked",
        "X-Name": "\xe9",
    }
    head, _ = _invoke(_handler(tmp_path, CHOOSING), {"headers": headers, "status": 201})
    assert head.headers == {"X-Count": "5", "X-Name": "\xe9"}
    assert head.status == 201
