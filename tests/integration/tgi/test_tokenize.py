"""`/tokenize` and `/chat_tokenize` over the wire."""

import pytest
import requests
from transformers import AutoTokenizer

from tests.support.servers import DEMO_MODEL, Server

TEXT = "Where is Zürich? 日本 🎉"


def _post(server: Server, path: str, body: object) -> requests.Response:
    return requests.post(f"{server.url}{path}", json=body, timeout=60)


def _check_pieces(pieces: list[dict], text: str) -> None:
    encoded = text.encode()
    assert pieces
    for piece in pieces:
        assert encoded[piece["start"] : piece["stop"]].decode() == piece["text"]
    assert pieces[-1]["stop"] == len(encoded)


def test_tokenize_returns_offsets_in_bytes(server: Server) -> None:
    pieces = _post(server, "/tokenize", {"inputs": TEXT}).json()
    assert [piece["id"] for piece in pieces] == AutoTokenizer.from_pretrained(DEMO_MODEL)(TEXT)[
        "input_ids"
    ]
    _check_pieces(pieces, TEXT)


def test_tokenize_takes_texts_longer_than_the_context(server: Server) -> None:
    pieces = _post(server, "/tokenize", {"inputs": "many words " * 5000}).json()
    assert len(pieces) > 5000


def test_tokenize_takes_parameters_and_checks_their_types(server: Server) -> None:
    body = {"inputs": "a", "parameters": {"max_new_tokens": 3}, "stream": True}
    assert _post(server, "/tokenize", body).json() == _post(
        server, "/tokenize", {"inputs": "a"}
    ).json()  # fmt: skip
    refused = _post(server, "/tokenize", {"inputs": 1})
    assert refused.status_code == 422
    assert refused.json()["error_type"] == "validation"
    assert "`inputs`" in refused.json()["error"]


def test_chat_tokenize_returns_text_and_tokens(server: Server) -> None:
    messages = [{"role": "user", "content": TEXT}]
    answer = _post(server, "/chat_tokenize", {"messages": messages}).json()
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert answer["templated_text"] == rendered
    _check_pieces(answer["tokenize_response"], rendered)
    chat = {"messages": messages, "max_tokens": 1}
    usage = _post(server, "/v1/chat/completions", chat).json()["usage"]
    assert usage["prompt_tokens"] == len(answer["tokenize_response"])


def test_chat_tokenize_answers_errors_in_tgis_form(server: Server) -> None:
    for messages in ([], "hi", [{"role": "user", "content": 1}], [{"content": "x"}]):
        refused = _post(server, "/chat_tokenize", {"messages": messages})
        assert refused.status_code == 422
        assert refused.json()["error_type"] == "validation"
        assert "messages" in refused.json()["error"]


@pytest.mark.parametrize("text", ["x", "lorem "])
def test_tokenize_refuses_very_long_texts_early(server: Server, text: str) -> None:
    long = text * (1_500_000 // len(text))
    refused = _post(server, "/tokenize", {"inputs": long})
    assert refused.status_code == 422
    assert "more than 32768" in refused.json()["error"]
    messages = [{"role": "user", "content": long}]
    assert _post(server, "/chat_tokenize", {"messages": messages}).status_code == 422
    body = {"model": "any", "messages": messages}
    counted = _post(server, "/v1/messages/count_tokens", body)
    assert counted.json()["input_tokens"] > 200_000
