"""Tools over the wire: chosen, forced, streamed, and answered in a loop."""

import json
from typing import Any

import jsonschema
import openai
import pytest
import requests

from tests.support.servers import Server

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "location": {"type": "string", "maxLength": 20},
        "format": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["location", "format"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather",
        "parameters": PARAMETERS,
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}
TOOLS: Any = [WEATHER, CLOCK]
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


def _check(call: Any) -> None:
    assert call.type == "function"
    assert call.id.startswith("call_")
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_current_weather":
        jsonschema.validate(arguments, PARAMETERS)
    else:
        assert call.function.name == "get_time"
        assert isinstance(arguments, dict)


@pytest.mark.parametrize("temperature", [0, 1.3])
def test_a_required_call(client: openai.OpenAI, temperature: float) -> None:
    answer = client.chat.completions.create(
        model="tgi",
        messages=QUESTION,
        tools=[WEATHER],
        tool_choice="required",
        temperature=temperature,
        parallel_tool_calls=False,
        seed=5,
    )
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls or []
    _check(call)


@pytest.mark.parametrize(
    "choice",
    [{"type": "function", "function": {"name": "get_current_weather"}}, "get_current_weather"],
)
def test_a_named_call(client: openai.OpenAI, choice: Any) -> None:
    """OpenAI's form, and the bare name that TGI takes."""
    answer = client.chat.completions.create(
        model="tgi", messages=QUESTION, tools=TOOLS, tool_choice=choice, temperature=1.3, n=2
    )
    ids = set()
    for one in answer.choices:
        [call] = one.message.tool_calls or []
        assert call.function.name == "get_current_weather"  # type: ignore[union-attr]
        _check(call)
        ids.add(call.id)
    assert len(ids) == 2


def test_the_model_decides(client: openai.OpenAI) -> None:
    """The demo model calls the weather for weather, and answers other questions."""
    first_answer = client.chat.completions.create(
        model="tgi", messages=QUESTION, tools=[WEATHER], temperature=0
    )
    assert first_answer.choices[0].finish_reason == "tool_calls"
    [call] = first_answer.choices[0].message.tool_calls or []
    assert "Paris" in call.function.arguments  # type: ignore[union-attr]
    other: Any = [{"role": "user", "content": "What is deep learning?"}]
    last_answer = client.chat.completions.create(
        model="tgi", messages=other, tools=[WEATHER], temperature=0, max_tokens=100
    )
    assert last_answer.choices[0].message.tool_calls is None
    assert "learning" in (last_answer.choices[0].message.content or "")
    none = client.chat.completions.create(
        model="tgi", messages=QUESTION, tools=[WEATHER], tool_choice="none", max_tokens=40
    )
    assert none.choices[0].message.tool_calls is None


def test_a_loop(client: openai.OpenAI) -> None:
    """Call, result, answer: the result reaches the model through its template."""
    messages: Any = list(QUESTION)
    first = client.chat.completions.create(
        model="tgi", messages=messages, tools=[WEATHER], temperature=0
    )
    message = first.choices[0].message
    [call] = message.tool_calls or []
    messages.append(message.model_dump(exclude_none=True))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21}'})
    second = client.chat.completions.create(
        model="tgi", messages=messages, tools=[WEATHER], temperature=0, max_tokens=100
    )
    assert second.choices[0].finish_reason == "stop"
    assert "21" in (second.choices[0].message.content or "")
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_streamed_call(client: openai.OpenAI, choice: Any) -> None:
    stream = client.chat.completions.create(
        model="tgi",
        messages=QUESTION,
        tools=[WEATHER],
        tool_choice=choice,
        parallel_tool_calls=False,
        temperature=0,
        stream=True,
    )
    chunks = [chunk.choices[0] for chunk in stream]
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["tool_calls"]
    deltas = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert {delta.index for delta in deltas} == {0}
    assert [delta.id is not None for delta in deltas].count(True) == 1
    assert [delta.function.name for delta in deltas if delta.function.name] == [  # type: ignore[union-attr]
        "get_current_weather"
    ]
    assert len(deltas) > 3, "the arguments come in pieces"
    joined = "".join(delta.function.arguments or "" for delta in deltas)  # type: ignore[union-attr]
    jsonschema.validate(json.loads(joined), PARAMETERS)
    assert not any(chunk.delta.content for chunk in chunks)


def test_the_stream_helper_of_the_openai_client(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="tgi", messages=QUESTION, tools=[WEATHER], tool_choice="required", temperature=0,
        parallel_tool_calls=False,
    ) as stream:  # fmt: skip
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    [call] = final.choices[0].message.tool_calls or []
    _check(call)


def test_a_call_that_is_cut_ends_with_length(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tgi", messages=QUESTION, tools=[WEATHER], tool_choice="required", max_tokens=18
    )
    [choice] = answer.choices
    assert choice.finish_reason == "length"
    [call] = choice.message.tool_calls or []
    assert call.function.name == "get_current_weather"  # type: ignore[union-attr]


def test_loose_arguments_ignore_unsupported_keywords(
    client: openai.OpenAI,
) -> None:
    odd = {
        "type": "object",
        "properties": {"tags": {"type": "array", "uniqueItems": True, "maxItems": 2}},
    }
    function = {"name": "tag", "parameters": odd}
    ask: Any = {"model": "tgi", "messages": QUESTION, "tool_choice": "required", "max_tokens": 200}
    loose = client.chat.completions.create(
        tools=[{"type": "function", "function": function}], **ask
    )
    assert loose.choices[0].message.tool_calls
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        client.chat.completions.create(
            tools=[{"type": "function", "function": function | {"strict": True}}], **ask
        )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": 3}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [CLOCK, CLOCK]}, "tools"),
        ({"tools": [CLOCK] * 129}, "tools"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "get_time"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "get_tim"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [{"function": {"name": "f", "parameters": {"type": "array"}}}]},
         "tools[0].function.parameters"),
        ({"tools": [{"function": {"name": "f", "parameters": {"properties": {"a": {"type": 1}}}}}]},
         "tools[0].function.parameters"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
        ({"store": True}, "store"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)  # fmt: skip
def test_bad_tools_are_a_400_that_names_the_field(
    server: Server, change: dict[str, Any], field: str
) -> None:
    body = {"messages": QUESTION, "max_tokens": 3} | change
    response = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == field


def test_invocations_call_tools_too(server: Server) -> None:
    body = {"messages": QUESTION, "tools": [WEATHER], "tool_choice": "required", "temperature": 0}
    answer = requests.post(f"{server.url}/invocations", json=body, timeout=60).json()
    assert answer["choices"][0]["message"]["tool_calls"]


def test_info_names_the_format_that_was_learnt(server: Server) -> None:
    assert requests.get(f"{server.url}/info", timeout=5).json()["tool_format"] == "hermes"
