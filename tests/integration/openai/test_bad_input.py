"""Each field of each route, with every wrong type and with values out of its range.

The types of TGI's fields are written down here; those of OpenAI's come from the schema that
/openapi.json shows, so that a new field is tested as soon as it is there.
"""

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import requests

from container.frontend.apis.docs.openapi import document
from tests.support.servers import Server

SAMPLES: dict[str, Any] = {
    "string": "x",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "array": [{"a": [None]}],
    "object": {"a": 1},
    "null": None,
}
GENERATE_ROUTES = ["/generate", "/generate_stream", "/", "/invocations"]
CHAT_ROUTES = ["/v1/chat/completions", "/openai/v1/chat/completions", "/invocations"]

# The JSON types that a field takes; null is the same as absence, but for a required field.
INTEGER, NUMBER, BOOLEAN = {"integer", "null"}, {"integer", "number", "null"}, {"boolean", "null"}
STRING, ARRAY, OBJECT = {"string", "null"}, {"array", "null"}, {"object", "null"}
PARAMETERS = {
    "best_of": INTEGER,
    "temperature": NUMBER,
    "repetition_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "top_k": INTEGER,
    "top_p": NUMBER,
    "typical_p": NUMBER,
    "do_sample": BOOLEAN,
    "max_new_tokens": INTEGER,
    "return_full_text": BOOLEAN,
    "stop": ARRAY,
    "truncate": INTEGER,
    "watermark": BOOLEAN,
    "details": BOOLEAN,
    "decoder_input_details": BOOLEAN,
    "seed": INTEGER,
    "top_n_tokens": INTEGER,
    "grammar": OBJECT,
    "adapter_id": STRING,
}
HUGE = 10**400
OUT_OF_RANGE: dict[str, list[Any]] = {
    "best_of": [0, -1, 3, HUGE],
    "temperature": [0, 0.0, -0.5, HUGE],
    "repetition_penalty": [0, -1.0, HUGE],
    "frequency_penalty": [-2.1, 2.1, HUGE],
    "top_k": [0, -1, 2**31, HUGE],
    "top_p": [0, -0.1, 1.1],
    "typical_p": [0, -0.1, 1.1],
    "max_new_tokens": [0, -1, 2048, HUGE],
    "stop": [["a"] * 5, [""], [1], [None]],
    "truncate": [0, -1, 2048, HUGE],
    "seed": [-1, 2**64, HUGE],
    "top_n_tokens": [-1, 6, HUGE],
    "grammar": [{}, {"type": "none"}, {"type": "json"}, {"type": "regex", "value": "("}],
}
CHAT_OUT_OF_RANGE: dict[str, list[Any]] = {
    "messages": [[], [{}], [{"role": "user"}], [{"role": "user", "content": 1}]],
    "max_tokens": [0, -1, 2048, HUGE],
    "max_completion_tokens": [0, -1, 2048],
    "temperature": [-0.1, HUGE],
    "top_p": [0, -0.1, 1.1],
    "top_k": [0, -2, 2**31],
    "min_p": [-0.1, 1.1],
    "n": [0, -1, 65, HUGE],
    "frequency_penalty": [-2.1, 2.1],
    "presence_penalty": [-2.1, 2.1],
    "repetition_penalty": [0, -1],
    "seed": [2**63, -(2**63) - 1],
    "stop": [["a"] * 5, [""], ""],
    "logit_bias": [
        {"a": 1},
        {"1": 101},
        {"1": -101},
        {"-1": 1},
        {f"{i:0>6}": 1 for i in range(2048)} | {"5": 1},
    ],
    "top_logprobs": [-1, 21],
    "min_tokens": [-1],
    "stop_token_ids": [[-1], [10**9], [5] * 1001],
    "allowed_token_ids": [[-1], [10**9], [], [5] * 2049],
    "bad_words": [["a"] * 1001, ["a" * 1001], [""]],
    "response_format": [{}, {"type": "none"}, {"type": "json_schema"}],
}
COMPLETION_OUT_OF_RANGE: dict[str, list[Any]] = {
    name: CHAT_OUT_OF_RANGE[name]
    for name in (
        "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "frequency_penalty",
        "presence_penalty", "repetition_penalty", "seed", "stop", "logit_bias", "min_tokens",
        "stop_token_ids", "allowed_token_ids", "bad_words", "response_format",
    )
} | {
    "prompt": [[], ["a"] * 5, [[]], [-1], [10**9], [["a"]], [1, "a"], "", ["a", ""]],
    "logprobs": [-1, 6],
    "best_of": [0, 2],
    "suffix": ["a"],
    "grammar": [{"type": "none"}, {"type": "regex", "value": "("}],
}  # fmt: skip
MESSAGES = [{"role": "user", "content": "Hi"}]


def _post(server: Server, path: str, body: dict) -> requests.Response:
    return requests.post(f"{server.url}{path}", json=body, timeout=60)


def _check_tgi(response: requests.Response, field: str, given: object) -> None:
    message = f"{field}={given!r:.60}: {response.status_code} {response.text[:200]}"
    assert response.status_code == 422, message
    assert response.headers["content-type"] == "application/json", message
    body = response.json()
    assert set(body) == {"error", "error_type"}, message
    assert body["error_type"] == "validation", message
    assert f"{field}`" in body["error"] or f"{field}[" in body["error"] or (
        f"{field}." in body["error"]
    ), message  # fmt: skip


def _check_openai(response: requests.Response, field: str, given: object) -> None:
    message = f"{field}={given!r:.60}: {response.status_code} {response.text[:200]}"
    assert response.status_code == 400, message
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error", message
    assert field in error["message"], message
    assert field in str(error["param"]), message


@pytest.mark.parametrize("field", PARAMETERS)
@pytest.mark.parametrize("path", [*GENERATE_ROUTES, "/tokenize"])
def test_a_parameter_of_another_type_is_named(server: Server, path: str, field: str) -> None:
    for kind, value in SAMPLES.items():
        if kind not in PARAMETERS[field]:
            response = _post(server, path, {"inputs": "a", "parameters": {field: value}})
            _check_tgi(response, field, value)


@pytest.mark.parametrize("field", OUT_OF_RANGE)
@pytest.mark.parametrize("path", GENERATE_ROUTES)
def test_a_parameter_out_of_range_is_named(server: Server, path: str, field: str) -> None:
    for value in OUT_OF_RANGE[field]:
        response = _post(server, path, {"inputs": "a", "parameters": {field: value}})
        _check_tgi(response, field, value)


@pytest.mark.parametrize("path", [*GENERATE_ROUTES, "/tokenize"])
def test_a_field_beside_the_parameters_is_named(server: Server, path: str) -> None:
    types = {"inputs": {"string"}, "parameters": OBJECT, "stream": BOOLEAN}
    for field, accepted in types.items():
        for kind, value in SAMPLES.items():
            if kind not in accepted:
                _check_tgi(_post(server, path, {"inputs": "a"} | {field: value}), field, value)


@pytest.mark.parametrize("path", [*GENERATE_ROUTES[:3], "/tokenize"])
def test_a_missing_prompt_is_named(server: Server, path: str) -> None:
    _check_tgi(_post(server, path, {}), "inputs", None)
    _check_tgi(_post(server, path, {"parameters": {}}), "inputs", None)


def test_an_unknown_body_is_refused_with_the_known_formats(server: Server) -> None:
    answer = _post(server, "/invocations", {"prompts": "a"})
    assert answer.status_code == 400
    assert "`inputs`" in answer.json()["error"]
    assert "`messages`" in answer.json()["error"]


def _wrong_types(schema: str) -> Iterator[tuple[str, list[Any]]]:
    """Each property of a schema in /openapi.json with the samples that it does not allow."""
    components = document()["components"]
    for name, rule in components["schemas"][schema]["properties"].items():
        rooted = rule | {"components": components}
        validator = jsonschema.Draft202012Validator(rooted)
        wrong = [value for value in SAMPLES.values() if not validator.is_valid(value)]
        if wrong:  # some fields take anything
            yield name, wrong


@pytest.mark.parametrize(("field", "wrong"), list(_wrong_types("ChatRequest")))
@pytest.mark.parametrize("path", [*CHAT_ROUTES, "/chat_tokenize"])
def test_a_chat_field_of_another_type_is_named(
    server: Server, path: str, field: str, wrong: list
) -> None:
    for value in wrong:
        response = _post(server, path, {"messages": MESSAGES, "max_tokens": 1} | {field: value})
        check = _check_tgi if path == "/chat_tokenize" else _check_openai
        check(response, field, value)


@pytest.mark.parametrize("field", CHAT_OUT_OF_RANGE)
@pytest.mark.parametrize("path", CHAT_ROUTES)
def test_a_chat_field_out_of_range_is_named(server: Server, path: str, field: str) -> None:
    for value in CHAT_OUT_OF_RANGE[field]:
        response = _post(server, path, {"messages": MESSAGES} | {field: value})
        # Too many for the context are told under the older name.
        _check_openai(response, field.replace("max_completion_", ""), value)


@pytest.mark.parametrize(("field", "wrong"), list(_wrong_types("CompletionRequest")))
@pytest.mark.parametrize("path", ["/v1/completions", "/invocations"])
def test_a_completion_field_of_another_type_is_named(
    server: Server, path: str, field: str, wrong: list
) -> None:
    for value in wrong:
        response = _post(server, path, {"prompt": "a", "max_tokens": 1} | {field: value})
        _check_openai(response, field, value)


@pytest.mark.parametrize("field", COMPLETION_OUT_OF_RANGE)
@pytest.mark.parametrize("path", ["/v1/completions", "/invocations"])
def test_a_completion_field_out_of_range_is_named(server: Server, path: str, field: str) -> None:
    for value in COMPLETION_OUT_OF_RANGE[field]:
        _check_openai(_post(server, path, {"prompt": "a"} | {field: value}), field, value)


@pytest.mark.parametrize(("field", "wrong"), list(_wrong_types("ResponseRequest")))
def test_a_field_of_responses_of_another_type_is_named(
    server: Server, field: str, wrong: list
) -> None:
    for value in wrong:
        response = _post(server, "/v1/responses", {"input": "a"} | {field: value})
        _check_openai(response, field, value)


def test_more_messages_than_tokens_are_refused(
    server: Server,
) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for path in ("/v1/chat/completions", "/v1/messages", "/invocations"):
        body = {"model": "any", "messages": turns * 10_000, "max_tokens": 2}
        refused = _post(server, path, body)
        assert refused.status_code == 400
        assert "20000 messages" in refused.json()["error"]["message"]
