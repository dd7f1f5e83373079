"""Every content type in and out of /invocations, for every shape of body that it takes."""

import csv
import io
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.support.models.embedders import MINILM
from tests.support.servers import Server, SharedServers

JSON, LINES, TEXT, CSV = "application/json", "application/jsonlines", "text/plain", "text/csv"
NEW = {"max_tokens": 3, "temperature": 0}
SIMILAR = {"source_sentence": "a", "sentences": ["b", "c"]}
# A body of each shape, and how many texts its answer has; None for vectors and scores.
SHAPES: dict[str, tuple[dict[str, Any], int | None]] = {
    "generate": ({"inputs": "What is", "parameters": {"max_new_tokens": 3}}, 1),
    "details": ({"inputs": "What is", "parameters": {"max_new_tokens": 3, "details": True}}, 1),
    "chat": ({"messages": [{"role": "user", "content": "Hi"}]} | NEW, 1),
    "two choices": ({"messages": [{"role": "user", "content": "Hi"}], "n": 2} | NEW, 2),
    "Anthropic's messages": (
        {"system": "Be brief.", "messages": [{"role": "user", "content": "Hi"}]} | NEW,
        1,
    ),
    "completion": ({"prompt": "What is"} | NEW, 1),
    "prompts": ({"prompt": ["What is", "Who"], "n": 2} | NEW, 4),
    "embedding": ({"input": ["a", "b"]}, None),
}
ALONE: dict[str, dict[str, Any]] = {
    "OpenAI's embedding": {"input": "a"},
    "TEI's embedding": {"inputs": ["a", "b"]},
    "TEI's similarity": {"inputs": SIMILAR},
}
ACCEPTS = {None: None, "*/*": None, JSON: JSON, LINES: LINES, TEXT: TEXT, CSV: CSV, "text/*": TEXT}
WRONG = ("application/x-npy", "image/png", "text/html;q=0.5")


@pytest.fixture(scope="module")
def both(shared_servers: SharedServers) -> Callable[[], Server]:
    """A language model and an embedding model."""
    settings = {"EMBEDDING_MODEL_ID": os.fspath(MINILM), "MAX_EMBEDDING_INPUTS": "64"}
    return lambda: shared_servers.get(**settings)


@pytest.fixture(scope="module")
def alone(shared_servers: SharedServers) -> Callable[[], Server]:
    """An embedding model alone."""
    return lambda: shared_servers.get("", EMBEDDING_MODEL_ID=os.fspath(MINILM))


def _invoke(server: Server, body: bytes, kind: str, accept: str | None) -> requests.Response:
    headers = {"Content-Type": kind, "Accept": accept}
    return requests.post(f"{server.url}/invocations", body, headers=headers, timeout=60)


def _texts(answer: requests.Response) -> list[str]:
    """The texts of an answer of any type."""
    kind = answer.headers["Content-Type"].partition(";")[0]
    if kind == CSV:
        [header], *rows = csv.reader(io.StringIO(answer.text))
        assert header == "generated_text"
        return [row[0] for row in rows]
    values = [json.loads(line) for line in answer.text.splitlines()]
    if kind == JSON and isinstance(values[0], list) and isinstance(values[0][0], list):
        values = values[0]  # records in one array
    return [text for value in values for text in _texts_of(value)]


def _texts_of(value: Any) -> list[str]:
    if isinstance(value, list):
        return [one["generated_text"] for one in value]
    if "content" in value:
        return ["".join(block["text"] for block in value["content"])]
    return [one.get("text") or one["message"]["content"] for one in value["choices"]]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_written_as_every_type(both: Callable[[], Server], shape: str) -> None:
    server, (body, num_texts) = both(), SHAPES[shape]
    data = json.dumps(body).encode()
    for accept, kind in ACCEPTS.items():
        answer = _invoke(server, data, JSON, accept)
        if num_texts is None and kind in (TEXT, CSV):
            assert answer.status_code == 406, (accept, answer.text)
            continue
        assert answer.status_code == 200, (accept, answer.text)
        assert answer.headers["Content-Type"] == (kind or JSON)
        if num_texts is not None and kind != TEXT:  # a text may have several lines
            assert len(_texts(answer)) == num_texts
    for accept in WRONG:
        assert _invoke(server, data, JSON, accept).status_code == 406


@pytest.mark.parametrize("name", ALONE)
def test_vectors_and_scores_are_json_only(alone: Callable[[], Server], name: str) -> None:
    server, data = alone(), json.dumps(ALONE[name]).encode()
    for accept, kind in ACCEPTS.items():
        for body, body_kind in ((data, JSON), (data + b"\n" + data, LINES)):
            answer = _invoke(server, body, body_kind, accept)
            is_text = kind in (TEXT, CSV)
            assert answer.status_code == (406 if is_text else 200), (accept, answer.text)
            assert is_text or answer.headers["Content-Type"] == (kind or body_kind)


@pytest.mark.parametrize(
    ("kind", "body", "default"),
    [
        (TEXT, b"What is", JSON),
        (CSV, b"inputs\nWhat is\nWho is\n", CSV),
        (LINES, b'"What is"\n{"prompt": "Who is", "max_tokens": 3}\n', LINES),
    ],
)
def test_every_type_is_read_and_every_type_is_written(
    both: Callable[[], Server], kind: str, body: bytes, default: str
) -> None:
    num_texts = 1 if kind == TEXT else 2
    for accept, written in ACCEPTS.items():
        answer = _invoke(both(), body, kind, accept)
        assert answer.status_code == 200, (accept, answer.text)
        is_csv = accept == "text/*" and default == CSV
        assert answer.headers["Content-Type"] == (CSV if is_csv else written or default)
        if written != TEXT:  # a text may have several lines
            assert len(_texts(answer)) == num_texts
    for accept in WRONG:
        assert _invoke(both(), body, kind, accept).status_code == 406


@pytest.mark.parametrize(("kind", "body"), [(TEXT, b"a"), (CSV, b"inputs\na\nb\n")])
def test_texts_are_read_by_an_embedding_model(
    alone: Callable[[], Server], kind: str, body: bytes
) -> None:
    answer = _invoke(alone(), body, kind, None)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == JSON
    assert len(answer.json()) == (1 if kind == TEXT else 2)


def test_a_record_of_vectors_among_texts_is_that_records_error(
    both: Callable[[], Server],
) -> None:
    body = b'{"prompt": "What is", "max_tokens": 3}\n{"input": "a"}\n'
    answer = _invoke(both(), body, LINES, CSV)
    first, second = list(csv.reader(io.StringIO(answer.text)))[1:]
    assert not first[0].startswith("error: ")
    assert second[0].startswith("error: ")
