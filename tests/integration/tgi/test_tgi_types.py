"""Bodies and events have the fields and types that TGI's own API description requires.

Two of its types are those of OpenAI here: log-probabilities of completions, and deltas of chats,
whose role comes once.
"""

import json
from typing import Any, Literal, NotRequired

import pytest
import requests
from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from tests.integration.openai.test_tools import WEATHER
from tests.support.servers import Server

STRICT = ConfigDict(strict=True)
Reason = Literal["length", "eos_token", "stop_sequence"]
GENERATE = {"inputs": "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n"}
CHAT = {"messages": [{"role": "user", "content": "Name a colour."}], "temperature": 0}


@with_config(STRICT)
class Token(TypedDict):
    id: int
    text: str
    logprob: float | None
    special: NotRequired[bool]  # not in a prompt's tokens


@with_config(STRICT)
class Sequence(TypedDict):
    finish_reason: Reason
    generated_tokens: int
    prefill: list[Token]
    tokens: list[Token]
    seed: NotRequired[int | None]
    top_tokens: NotRequired[list[list[Token]]]


class BestOf(Sequence):
    generated_text: str


class Details(Sequence):
    best_of_sequences: NotRequired[list[BestOf] | None]


@with_config(STRICT)
class Generated(TypedDict):
    generated_text: str
    details: NotRequired[Details | None]


@with_config(STRICT)
class StreamDetails(TypedDict):
    finish_reason: Reason
    generated_tokens: int
    input_length: int
    seed: NotRequired[int | None]


@with_config(STRICT)
class StreamEvent(TypedDict):
    index: int
    token: Token
    top_tokens: NotRequired[list[Token]]
    generated_text: str | None
    details: StreamDetails | None


@with_config(STRICT)
class SimpleToken(TypedDict):
    id: int
    text: str
    start: int
    stop: int


@with_config(STRICT)
class ChatTokens(TypedDict):
    tokenize_response: list[SimpleToken]
    templated_text: str


@with_config(STRICT)
class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@with_config(STRICT)
class Message(TypedDict):
    role: str
    content: NotRequired[str | None]
    tool_calls: NotRequired[list[Any]]


@with_config(STRICT)
class ChatChoice(TypedDict):
    index: int
    message: Message
    finish_reason: str


@with_config(STRICT)
class TextChoice(TypedDict):
    index: int
    text: str
    finish_reason: str


@with_config(STRICT)
class Envelope(TypedDict):
    id: str
    created: int
    model: str
    system_fingerprint: str


class Chat(Envelope):
    choices: list[ChatChoice]
    usage: Usage


class Text(Envelope):
    choices: list[TextChoice]
    usage: Usage


class Chunk(Envelope):
    choices: list[Any]
    usage: NotRequired[Usage | None]


@with_config(STRICT)
class Info(TypedDict):
    model_id: str
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str


@with_config(STRICT)
class Failure(TypedDict):
    error: str
    error_type: str


def _check(kind: Any, value: object) -> None:
    TypeAdapter(kind).validate_python(value)


def _post(server: Server, path: str, body: dict[str, Any]) -> requests.Response:
    return requests.post(f"{server.url}{path}", json=body, timeout=60)


def _streamed(server: Server, path: str, body: dict[str, Any]) -> list[Any]:
    text = _post(server, path, body).text
    lines = [line for line in text.splitlines() if line.startswith("data:{")]
    lines += [line for line in text.splitlines() if line.startswith("data: {")]
    assert lines
    return [json.loads(line.removeprefix("data:")) for line in lines]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"details": True},
        {"details": True, "decoder_input_details": True, "top_n_tokens": 3},
        {"details": True, "best_of": 2, "do_sample": True},
    ],
)
def test_generated_texts(server: Server, parameters: dict[str, Any]) -> None:
    body = GENERATE | {"parameters": {"max_new_tokens": 5} | parameters}
    _check(Generated, _post(server, "/generate", body).json())
    _check(list[Generated], _post(server, "/", body).json())
    if "best_of" not in parameters and "decoder_input_details" not in parameters:
        for event in _streamed(server, "/generate_stream", body):
            _check(StreamEvent, event)


def test_chats_and_completions(server: Server) -> None:
    calls = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 200}
    for fields in ({}, {"logprobs": True, "top_logprobs": 2}, calls):
        _check(Chat, _post(server, "/v1/chat/completions", CHAT | fields).json())
        streamed = CHAT | fields | {"stream": True, "stream_options": {"include_usage": True}}
        for chunk in _streamed(server, "/v1/chat/completions", streamed):
            _check(Chunk, chunk)
    completion = {"prompt": "deep", "max_tokens": 4}
    _check(Text, _post(server, "/v1/completions", completion).json())
    for chunk in _streamed(server, "/v1/completions", completion | {"stream": True}):
        _check(Chunk, chunk)


def test_tokens_info_and_errors(server: Server) -> None:
    _check(list[SimpleToken], _post(server, "/tokenize", GENERATE).json())
    _check(ChatTokens, _post(server, "/chat_tokenize", CHAT).json())
    _check(Info, requests.get(f"{server.url}/info", timeout=10).json())
    wrong = GENERATE | {"parameters": {"temperature": -1}}
    for path in ("/generate", "/generate_stream"):
        _check(Failure, _post(server, path, wrong).json())
