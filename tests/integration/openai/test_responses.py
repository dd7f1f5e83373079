"""OpenAI's responses over the wire: text, calls, structured output, streams of typed events."""

import json
from typing import Any

import jsonschema
import openai
import pytest
import requests
from pydantic import BaseModel, ConfigDict, Field

from tests.integration.openai.test_tools import PARAMETERS
from tests.support.servers import Server

WEATHER: Any = {
    "type": "function",
    "name": "get_current_weather",
    "description": "Get the current weather",
    "parameters": PARAMETERS,
    "strict": True,
}
QUESTION = "What is the weather in Paris?"


class Animal(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: str = Field(max_length=12)
    legs: int


def test_text(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="tgi",
        instructions="Be short.",
        input="What is deep learning?",
        temperature=0,
        metadata={"topic": "learning"},
    )
    assert answer.status == "completed"
    assert answer.output_text.startswith("Deep learning")
    [message] = answer.output
    assert message.type == "message"
    assert message.status == "completed"
    assert answer.metadata == {"topic": "learning"}
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    chat = client.chat.completions.create(
        model="tgi",
        messages=[
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "What is deep learning?"},
        ],
        temperature=0,
    )
    assert chat.choices[0].message.content == answer.output_text


def test_a_text_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="tgi", input="What is deep learning?", max_output_tokens=3, temperature=0
    )
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "num_top"),
    [({"include": ["message.output_text.logprobs"]}, 0), ({"top_logprobs": 3}, 3)],
)
def test_log_probabilities_are_those_of_the_text(
    client: openai.OpenAI, fields: dict[str, Any], num_top: int
) -> None:
    ask: dict[str, Any] = {"model": "tgi", "input": "Name a colour.", "temperature": 0} | fields
    answer = client.responses.create(**ask)
    [part] = answer.output[0].content  # type: ignore[union-attr]
    scored: Any = part.logprobs  # type: ignore[union-attr]
    assert "".join(entry.token for entry in scored) == answer.output_text
    assert {len(entry.top_logprobs) for entry in scored} == {num_top}
    assert all(entry.logprob <= 0 for entry in scored)
    events: list[Any] = list(client.responses.create(stream=True, **ask))
    streamed = [
        entry.logprob
        for event in events
        if event.type == "response.output_text.delta"
        for entry in event.logprobs
    ]
    [done] = [event for event in events if event.type == "response.output_text.done"]
    assert streamed == [entry.logprob for entry in done.logprobs]
    assert streamed == [entry.logprob for entry in scored]


def test_calls_and_marks_have_no_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="tgi", input=QUESTION, tools=[WEATHER], tool_choice="required", temperature=0,
        top_logprobs=1,
    )  # fmt: skip
    assert {item.type for item in answer.output} == {"function_call"}


def test_a_loop_of_calls(client: openai.OpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": QUESTION}]
    first = client.responses.create(
        model="tgi", input=items, tools=[WEATHER], tool_choice="required",
        parallel_tool_calls=False, temperature=0,
    )  # fmt: skip
    [call] = first.output
    assert call.type == "function_call"
    jsonschema.validate(json.loads(call.arguments), PARAMETERS)
    items += [item.model_dump(exclude_none=True) for item in first.output]
    items.append(
        {"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature": 21}'}
    )
    second = client.responses.create(model="tgi", input=items, tools=[WEATHER], temperature=0)
    assert "21" in second.output_text


def test_parse(client: openai.OpenAI) -> None:
    answer = client.responses.parse(
        model="tgi", input="Name an animal.", text_format=Animal, temperature=1
    )
    assert isinstance(answer.output_parsed, Animal)


@pytest.mark.parametrize("tools", [[], [WEATHER]])
def test_a_stream_ends_with_the_whole_response(client: openai.OpenAI, tools: list[Any]) -> None:
    ask: dict[str, Any] = {"model": "tgi", "input": QUESTION, "tools": tools, "temperature": 0}
    whole = client.responses.create(**ask)
    events = list(client.responses.create(stream=True, **ask))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-2:] == ["response.output_item.done", "response.completed"]
    final = events[-1].response  # type: ignore[union-attr]
    kind = "function_call_arguments" if tools else "output_text"
    deltas = [event.delta for event in events if event.type == f"response.{kind}.delta"]  # type: ignore[union-attr]
    assert len(deltas) > 3
    if tools:
        assert "".join(deltas) == whole.output[-1].arguments == final.output[-1].arguments  # type: ignore[union-attr]
    else:
        assert "".join(deltas) == whole.output_text == final.output_text


def test_the_stream_helper_of_the_openai_client(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="tgi", input="Name an animal.", text_format=Animal, temperature=1
    ) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_response().output_parsed, Animal)


def test_the_events_have_their_type_in_a_line(server: Server) -> None:
    body = {"input": "Hi", "stream": True, "max_output_tokens": 4}
    text = requests.post(f"{server.url}/v1/responses", json=body, timeout=60).text
    blocks = [block for block in text.split("\n\n") if block]
    for block in blocks:
        head, data = block.split("\n")
        assert head == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert "[DONE]" not in text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content"),
        ({"input": [{"content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input[0].content[0].image_url"),
        ({"input": [{"type": "function_call", "name": "f", "call_id": "a", "arguments": [1]}]},
         "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": "a"}]}, "input[0].call_id"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"stop": [""]}, "stop"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"cache_salt": "s"}, "cache_salt"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"include": ["message.output_text.everything"]}, "include"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
        ({"temperature": -1}, "temperature"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
         "text.format.json_schema.schema"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input_is_a_400_that_names_the_field(
    server: Server, change: dict[str, Any], field: str, stream: bool
) -> None:
    body = {"input": "Hi", "max_output_tokens": 3, "stream": stream} | change
    response = requests.post(f"{server.url}/v1/responses", json=body, timeout=30)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == field


def test_a_stored_response_is_continued(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tgi", "temperature": 0, "max_output_tokens": 40}
    first = client.responses.create(input="What is deep learning?", **ask)
    again = client.responses.retrieve(first.id)
    assert again.output_text == first.output_text
    assert again.model_dump()["store"] is True
    second = client.responses.create(input="And?", previous_response_id=first.id, **ask)
    assert second.previous_response_id == first.id
    items: Any = [
        {"role": "user", "content": "What is deep learning?"},
        *first.output,
        {"role": "user", "content": "And?"},
    ]
    whole = client.responses.create(input=items, store=False, **ask)
    assert second.output_text == whole.output_text
    assert second.usage.input_tokens == whole.usage.input_tokens
    counted = client.responses.input_tokens.count(
        model="tgi", input="And?", previous_response_id=first.id
    )
    assert counted.input_tokens == whole.usage.input_tokens
    client.responses.delete(first.id)
    for call in (
        lambda: client.responses.retrieve(first.id),
        lambda: client.responses.retrieve(whole.id),
        lambda: client.responses.delete(first.id),
    ):
        with pytest.raises(openai.NotFoundError, match="not stored"):
            call()
    with pytest.raises(openai.BadRequestError, match="not stored"):
        client.responses.create(input="a", previous_response_id=first.id, **ask)


def test_a_streamed_response_is_stored_with_its_calls(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tgi", "temperature": 0, "tools": [WEATHER]}
    stream = client.responses.create(
        input=QUESTION, stream=True, tool_choice="required", parallel_tool_calls=False, **ask
    )
    *_, last = stream
    stored = client.responses.retrieve(last.response.id)
    [call] = [item for item in stored.output if item.type == "function_call"]
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "21"}
    answer = client.responses.create(input=[result], previous_response_id=stored.id, **ask)
    assert answer.status in ("completed", "incomplete")


def test_fields_of_vllm(client: openai.OpenAI) -> None:
    choice = {"structured_outputs": {"choice": ["blue", "green"]}}
    answer = client.responses.create(model="tgi", input=QUESTION, extra_body=choice)
    assert answer.output_text in ("blue", "green")
    stop = {"stop": ["learning"], "include_stop_str_in_output": True}
    ask: Any = {"model": "tgi", "input": "What is deep learning?", "temperature": 0}
    assert client.responses.create(**ask, extra_body=stop).output_text == "Deep learning"
