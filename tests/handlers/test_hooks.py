"""The user's functions: found, loaded, called with or without context, and their results."""

import json
import sys
import threading
from pathlib import Path

import pytest

from container.errors import HandlerFailed, ModelLoadError, ServingError
from container.handlers.invocation import ClientDisconnected
from container.messages.handler import Invoke
from tests.handlers.programs import invoke, load_handler, numbers

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


def test_the_four_functions_are_called_in_turn(tmp_path: Path) -> None:
    head, parts = invoke(load_handler(tmp_path, PLAIN), {}, "application/json; charset=utf-8")
    assert parts == [b"application/json:str|application/json|dir"]
    assert (head.status, head.content_type) == (200, "application/json")


def test_bodies_are_text_for_json_and_csv_and_bytes_else(tmp_path: Path) -> None:
    handler = load_handler(tmp_path, PLAIN)
    for kind, expected in (("text/csv", "str"), ("text/plain", "bytes"), ("x/y", "bytes")):
        assert invoke(handler, b"a", kind)[1][0].split(b":")[1].startswith(expected.encode())


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
    head, parts = invoke(load_handler(tmp_path, program), {}, x_thing="here")
    assert parts == [b"['here', True]"]
    assert (head.status, head.content_type) == (202, "text/x-own")
    assert head.headers == {"X-Back": "here"}


def test_output_fn_may_name_the_content_type(tmp_path: Path) -> None:
    program = """
def model_fn(model_dir): return None
def predict_fn(data, model): return data
def output_fn(prediction, accept): return "a,b", "text/csv"
"""
    head, parts = invoke(load_handler(tmp_path, program), 1)
    assert (head.content_type, parts) == ("text/csv", [b"a,b"])


def test_transform_fn_replaces_the_other_three(tmp_path: Path) -> None:
    program = """
def model_fn(model_dir): return "model"
def transform_fn(model, body, content_type, accept): return ",".join([model, body, accept])
"""
    assert invoke(load_handler(tmp_path, program), b"7", "text/csv", "text/csv")[1] == [
        b"model,7,text/csv"
    ]
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ModelLoadError, match="transform_fn replaces"):
        load_handler(other, program + "def predict_fn(data, model): pass")


def test_the_defaults_are_those_of_the_hugging_face_toolkit(tmp_path: Path) -> None:
    program = """
def model_fn(model_dir):
    return lambda inputs, **parameters: {"inputs": inputs, "parameters": parameters}
"""
    handler = load_handler(tmp_path, program)
    body = {"inputs": "a", "parameters": {"top_k": 2}}
    assert json.loads(invoke(handler, body)[1][0]) == body
    assert json.loads(invoke(handler, {"x": 1})[1][0])["inputs"] == {"x": 1}
    assert json.loads(invoke(handler, b"inputs\na\n", "text/csv")[1][0])["inputs"] == ["a"]
    head, parts = invoke(handler, {"inputs": 1}, accept="application/jsonlines")
    assert (head.content_type, parts) == (
        "application/jsonlines",
        [b'{"inputs":1,"parameters":{}}\n'],
    )


def test_a_string_prediction_is_json(tmp_path: Path) -> None:
    handler = load_handler(tmp_path, "def predict_fn(data, model): return 'é\"'")
    assert invoke(handler, {})[1] == ['"é\\""'.encode()]
    assert invoke(handler, {}, accept="text/plain")[1] == ['é"'.encode()]


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
    head, parts = invoke(load_handler(tmp_path, program), {})
    assert head.is_stream
    assert head.content_type == "text/plain; charset=utf-8"
    assert parts == [b"a", b"b", b"\n"]


def test_streamed_objects_are_json_lines_or_events(tmp_path: Path) -> None:
    handler = load_handler(
        tmp_path, "def predict_fn(data, model):\n    yield {'n': 1}\n    yield 2"
    )
    head, parts = invoke(handler, {})
    assert (head.content_type, parts) == ("application/jsonlines", [b'{"n":1}\n', b"2\n", b""])
    head, parts = invoke(handler, {}, accept="text/event-stream")
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
    assert invoke(load_handler(tmp_path, program), {})[1] == [b"<1>", b"<2>", b"\n"]


def test_an_empty_generator_is_an_empty_answer(tmp_path: Path) -> None:
    program = "def predict_fn(data, model):\n    return\n    yield"
    assert invoke(load_handler(tmp_path, program), {})[1] == [b""]


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
    handler = load_handler(tmp_path, program)
    assert handler.is_concurrent
    responses: list[list[bytes]] = []
    threads = [
        threading.Thread(target=lambda: responses.append(invoke(handler, 5)[1])) for _ in range(2)
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
    handler = load_handler(tmp_path, program.replace("def output_fn", "def _"))
    event = threading.Event()
    answer = handler.answer(Invoke(1, b"{}", "application/json", ""), event)
    next(answer), next(answer)
    event.set()
    with pytest.raises(ClientDisconnected):
        list(answer)
    assert sys.modules[f"inference_{next(numbers) - 1}"].closed == [True]


def test_the_clients_faults_are_400_and_the_codes_faults_500(tmp_path: Path) -> None:
    program = """
def input_fn(body, content_type): return int(body)
def predict_fn(data, model): return 1 // data
"""
    handler = load_handler(tmp_path, program)
    with pytest.raises(ServingError, match="input_fn: ValueError: invalid literal") as caught:
        invoke(handler, b"x")
    assert caught.value.kind == "malformed"
    with pytest.raises(ServingError, match="user code failed: ZeroDivisionError") as caught:
        invoke(handler, b"0")
    assert caught.value.kind == "handler"


def test_an_exception_with_a_status_keeps_it(tmp_path: Path) -> None:
    program = """
class Teapot(Exception):
    status_code = 418
def predict_fn(data, model): raise Teapot("short and stout")
"""
    head, parts = invoke(load_handler(tmp_path, program), {})
    assert head.status == 418
    assert json.loads(parts[0])["error"] == "short and stout"


def test_wrong_types_are_refused_with_those_that_work(tmp_path: Path) -> None:
    handler = load_handler(tmp_path, "def predict_fn(data, model): return 1")
    with pytest.raises(ServingError, match="supported are") as caught:
        invoke(handler, b"", "application/zip")
    assert caught.value.kind == "media_type"
    with pytest.raises(ServingError, match="offered are") as caught:
        invoke(handler, {}, accept="image/png")
    assert caught.value.kind == "not_acceptable"


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
        invoke(load_handler(tmp_path, CHOOSING), body)


def test_headers_are_text_and_do_not_frame_the_answer(tmp_path: Path) -> None:
    headers = {
        "X-Count": 5,
        "Content-Length": "3",
        "Transfer-Encoding": "chunked",
        "X-Name": "\xe9",
    }
    head, _ = invoke(load_handler(tmp_path, CHOOSING), {"headers": headers, "status": 201})
    assert head.headers == {"X-Count": "5", "X-Name": "\xe9"}
    assert head.status == 201
