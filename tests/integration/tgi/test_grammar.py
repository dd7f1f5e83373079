"""Structured output over the wire, in every form in which clients ask for it."""

import json
from typing import Any

import jsonschema
import openai
import pytest
import requests
from pydantic import BaseModel, ConfigDict, Field

from tests.support.servers import Server

PROMPT = "<|im_start|>user\nTell me about Paris.<|im_end|>\n<|im_start|>assistant\n"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "sights": {"type": "array", "items": {"enum": ["tower", "river"]}, "maxItems": 3},
        "visited": {"type": "boolean"},
    },
    "required": ["city", "sights", "visited"],
    "additionalProperties": False,
}


class Animal(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: str = Field(max_length=12)
    legs: int


class Park(BaseModel):
    """A model with a nested definition, as TGI's guidance page sends it."""

    model_config = ConfigDict(extra="forbid")

    animals: list[Animal] = Field(max_length=3)


def _generate(server: Server, grammar: object, **parameters: Any) -> requests.Response:
    body = {
        "inputs": PROMPT,
        "parameters": {"grammar": grammar, "max_new_tokens": 200, "do_sample": True, "seed": 1}
        | parameters,
    }
    return requests.post(f"{server.url}/generate", json=body, timeout=60)


def _text(server: Server, grammar: object, **parameters: Any) -> str:
    response = _generate(server, grammar, **parameters)
    assert response.status_code == 200, response.text
    return str(response.json()["generated_text"])


@pytest.mark.parametrize(
    "grammar",
    [
        {"type": "json", "value": SCHEMA},
        {"type": "json_object", "value": json.dumps(SCHEMA)},
        {"type": "json_schema", "value": {"name": "trip", "schema": SCHEMA}},
        {"type": "json_schema", "value": SCHEMA},
    ],
)
def test_generate_follows_a_schema(server: Server, grammar: object) -> None:
    for seed in range(4):
        text = _text(server, grammar, seed=seed, temperature=1.5)
        jsonschema.validate(json.loads(text), SCHEMA)


def test_generate_follows_a_regex(server: Server) -> None:
    grammar = {"type": "regex", "value": r"[0-9]{1,3}(\.[0-9]{1,3}){3}"}
    parts = _text(server, grammar).split(".")
    assert len(parts) == 4
    assert all(part.isdecimal() for part in parts)


def test_this_projects_own_forms(server: Server) -> None:
    assert _text(server, {"type": "choice", "value": ["yes", "no"]}) in ("yes", "no")
    lark = 'start: "a" /[0-9]/ | "b"'
    text = _text(server, {"type": "lark", "value": lark})
    assert text == "b" or (text[0] == "a" and text[1].isdecimal())


def test_a_pydantic_schema_as_tgi_clients_send_it(server: Server) -> None:
    text = _text(server, {"type": "json", "value": Park.model_json_schema()}, max_new_tokens=400)
    assert isinstance(Park.model_validate_json(text), Park)


def test_finish_reason_and_greedy(server: Server) -> None:
    grammar = {"type": "json", "value": SCHEMA}
    answer = _generate(server, grammar, do_sample=False, seed=None, details=True).json()
    assert answer["details"]["finish_reason"] == "eos_token"
    jsonschema.validate(json.loads(answer["generated_text"]), SCHEMA)
    cut = _generate(server, grammar, max_new_tokens=3, details=True).json()
    assert cut["details"]["finish_reason"] == "length"


def test_the_prefix_of_a_streamed_grammar(server: Server) -> None:
    body = {
        "inputs": PROMPT,
        "parameters": {"grammar": {"type": "json", "value": SCHEMA}, "max_new_tokens": 200},
        "stream": True,
    }
    with requests.post(f"{server.url}/invocations", json=body, timeout=60, stream=True) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith(b"data:")]
    texts = [json.loads(line[5:])["token"]["text"] for line in lines]
    jsonschema.validate(json.loads("".join(texts)), SCHEMA)


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
        {"type": "json_object", "value": SCHEMA},
        {"type": "json", "value": SCHEMA},
    ],
)
def test_chat_follows_a_response_format(
    client: openai.OpenAI, response_format: dict[str, Any]
) -> None:
    answer = client.chat.completions.create(
        model="tgi",
        messages=[{"role": "user", "content": "Tell me about Paris."}],
        response_format=response_format,  # type: ignore[arg-type]
        temperature=1.2,
        n=3,
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)


def test_chat_answers_any_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tgi",
        messages=[{"role": "user", "content": "Tell me about Paris."}],
        response_format={"type": "json_object"},
        max_tokens=600,
        temperature=0.7,
        seed=3,
        logprobs=True,
        top_logprobs=3,
    )
    [choice] = answer.choices
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)


def test_parse_of_the_openai_client(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="tgi",
        messages=[{"role": "user", "content": "Name an animal."}],
        response_format=Animal,
        max_tokens=300,
    )
    assert isinstance(answer.choices[0].message.parsed, Animal)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ({"type": "yaml", "value": ""}, "grammar.type"),
        ({"type": ["json"], "value": {}}, "grammar.type"),
        ({}, "grammar.type"),
        ({"type": "json"}, "grammar.value"),
        ({"type": "json", "value": 3}, "grammar.value"),
        ({"type": "json", "value": {"type": "x"}}, "Invalid type"),
        ({"type": "regex", "value": "("}, "grammar.value"),
        ({"type": "regex", "value": {}}, "grammar.value"),
        ({"type": "choice", "value": [1]}, "grammar.value"),
        ({"type": "json_schema", "value": 1}, "grammar.value"),
    ],
)
def test_a_bad_grammar_is_a_422_that_names_it(server: Server, grammar: object, reason: str) -> None:
    response = _generate(server, grammar)
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"
    assert reason in response.json()["error"]


def test_a_bad_response_format_is_a_400_before_the_stream(client: openai.OpenAI) -> None:
    schema = {"properties": {"a": {"uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError, match=r"uniqueItems.*at /properties/a") as caught:
        client.chat.completions.create(
            model="tgi",
            messages=[{"role": "user", "content": "Hi"}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": schema},
            },
            stream=True,
        )
    assert caught.value.param == "response_format.json_schema.schema"
