"""What TGI's page on guidance shows: the same requests in shape, with prompts of our own."""

import ipaddress
import json
import subprocess
from typing import Any

import jsonschema
import pytest
from huggingface_hub import InferenceClient
from openai import OpenAI
from pydantic import BaseModel, conint

from tests.support.servers import Server

PROMPT = "A fox, two hens and a dog ran past me in the garden while I was reading."
# As on the page: no `type` at the top.
SCHEMA = {
    "properties": {
        "location": {"type": "string"},
        "activity": {"type": "string"},
        "animals_seen": {"type": "integer", "minimum": 1, "maximum": 5},
        "animals": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["location", "activity", "animals_seen", "animals"],
}


WHERE = {
    "location": {"type": "string", "description": "City and state", "maxLength": 30},
    "format": {"type": "string", "enum": ["celsius", "fahrenheit"]},
}
FORECAST = WHERE | {"num_days": {"type": "integer", "minimum": 1, "maximum": 9}}


def _tool(name: str, properties: dict) -> dict:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": "Tells the weather", "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [_tool("get_current_weather", WHERE), _tool("get_n_day_weather_forecast", FORECAST)]
WEATHER = [{"role": "user", "content": "Will it rain in Lisbon?"}]


class Animals(BaseModel):
    location: str
    activity: str
    animals_seen: conint(ge=1, le=5)  # type: ignore[valid-type]  # as TGI's page has it
    animals: list[str]


@pytest.fixture(scope="module")
def client(server: Server) -> InferenceClient:
    return InferenceClient(server.url, timeout=60)


def _check(details: Any, text: str) -> None:
    """Whole answers fit the model; one that was cut off has begun as an object."""
    assert text.lstrip().startswith("{")
    if details.finish_reason != "length":
        Animals.model_validate_json(text)


def test_curl_with_a_schema(server: Server) -> None:
    parameters = {"repetition_penalty": 1.3, "grammar": {"type": "json", "value": SCHEMA}}
    body = {"inputs": PROMPT, "parameters": parameters | {"details": True, "max_new_tokens": 200}}
    command = [
        "curl", "-s", f"{server.url}/generate", "-X", "POST",
        "-H", "Content-Type: application/json", "-d", json.dumps(body),
    ]  # fmt: skip
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    answer = json.loads(out)
    assert answer["generated_text"].lstrip().startswith("{"), out
    if answer["details"]["finish_reason"] != "length":
        Animals.model_validate_json(answer["generated_text"])


@pytest.mark.filterwarnings("ignore:The `schema` method is deprecated")
@pytest.mark.parametrize("made_by", ["hand", "pydantic"])
def test_the_hubs_client_with_a_schema(client: InferenceClient, made_by: str) -> None:
    schema = SCHEMA | {"title": "Animals", "type": "object"}
    if made_by == "pydantic":
        schema = Animals.schema()
    answer = client.text_generation(
        f"As JSON: {PROMPT} The schema: {schema}",
        max_new_tokens=200,
        seed=42,
        details=True,
        return_full_text=False,
        grammar={"type": "json", "value": schema},
    )
    _check(answer.details, answer.generated_text)


def test_a_regular_expression(client: InferenceClient) -> None:
    pattern = r"((25[0-5]|2[0-4]\d|[01]?\d\d?)\.){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)"
    text = client.text_generation(
        "An address of a name server?",
        seed=42,
        return_full_text=False,
        grammar={"type": "regex", "value": pattern},
    )
    ipaddress.ip_address(".".join(str(int(part)) for part in text.split(".")))


def _check_call(name: str, arguments: str) -> None:
    [tool] = [tool["function"] for tool in TOOLS if tool["function"]["name"] == name]
    jsonschema.validate(json.loads(arguments), tool["parameters"])


def test_curl_with_a_tool_named_by_a_bare_string(server: Server) -> None:
    body = {
        "model": "tgi", "messages": WEATHER, "tools": TOOLS[:1],
        "tool_choice": "get_current_weather",
    }  # fmt: skip
    command = [
        "curl", "-s", f"{server.url}/v1/chat/completions", "-X", "POST",
        "-H", "Content-Type: application/json", "-d", json.dumps(body),
    ]  # fmt: skip
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    [choice] = json.loads(out)["choices"]
    [call] = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    _check_call(call["function"]["name"], call["function"]["arguments"])


def test_the_hubs_client_with_tools(client: InferenceClient) -> None:
    fields = {"tools": TOOLS, "tool_choice": "required", "seed": 42, "max_tokens": 200}
    chat = client.chat_completion(WEATHER, **fields)
    assert chat.choices[0].finish_reason == "tool_calls"
    for call in chat.choices[0].message.tool_calls:
        _check_call(call.function.name, call.function.arguments)
    pieces: dict[int, list[str]] = {}
    names: dict[int, str] = {}
    for chunk in client.chat_completion(WEATHER, stream=True, **fields):
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or []:
                pieces.setdefault(call.index, []).append(call.function.arguments or "")
                names[call.index] = names.get(call.index) or call.function.name
    assert names
    for index, name in names.items():
        _check_call(name, "".join(pieces[index]))


def test_openais_client_lets_the_model_choose(server: Server) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="_", timeout=60)
    chat = client.chat.completions.create(
        model="tgi", messages=WEATHER, tools=TOOLS, tool_choice="auto", max_tokens=300
    )
    [choice] = chat.choices
    assert choice.message.content or choice.message.tool_calls
    if choice.finish_reason != "length":
        for call in choice.message.tool_calls or []:
            _check_call(call.function.name, call.function.arguments)
