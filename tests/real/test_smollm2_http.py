"""The real tokenizer and templates over HTTP: copies, grammars, tools, reasoning."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
import psutil
import pytest
import requests

from tests.support.models import real_models
from tests.support.models.real_models import QUESTIONS
from tests.support.servers import DEMO_MODEL, Server, serving, wait_for

COUNT = 12
SIZES = {"MAX_BATCH_TOTAL_TOKENS": "8192"}
# A template of the same turns (ChatML) that lists tools, and opens the thoughts when told to.
THOUGHTS = """
{%- if enable_thinking is defined and not enable_thinking -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- elif reasoning_effort is defined -%}
{{- '<think>\\n' -}}
{%- endif -%}
"""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "population": {"type": "integer", "minimum": 0, "maximum": 99_999_999},
        "kind": {"enum": ["city", "village"]},
    },
    "required": ["name", "population", "kind"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "maxLength": 20},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location", "unit"],
            "additionalProperties": False,
        },
    },
}
ASK_WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def two_copies(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two copies of the model and its own template, which knows no tools."""
    log = tmp_path_factory.mktemp("copies") / "log"
    with serving(log, real_model, DATA_PARALLEL="2", **SIZES) as server:
        blocks = 2 * 8192 // 32
        wait_for(lambda: server.metric("engine_blocks_total") == blocks, 120, lambda: server.log)
        yield server


@pytest.fixture(scope="module")
def client(two_copies: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{two_copies.url}/v1", api_key="-", max_retries=0)


@pytest.fixture(scope="module")
def tool_client(
    real_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    """A client of a server whose template lists tools and can open the reasoning."""
    folder = tmp_path_factory.mktemp("tools")
    template = folder / "template.jinja"
    template.write_text((DEMO_MODEL / "chat_template.jinja").read_text() + THOUGHTS)
    with serving(folder / "log", real_model, TOKENIZER_CONFIG_PATH=str(template), **SIZES) as ready:
        yield openai.OpenAI(base_url=f"{ready.url}/v1", api_key="-", max_retries=0)


def _ask(client: openai.OpenAI, messages: Any, **more: Any) -> Any:
    ask = {"model": "tgi", "messages": messages, "temperature": 0, "max_tokens": COUNT}
    return client.chat.completions.create(**ask | more)


def _cpu_seconds(server: Server) -> list[float]:
    children = psutil.Process(server.process.pid).children()
    engines = [child for child in children if "engine" in child.cmdline()]
    return [sum(engine.cpu_times()[:2]) for engine in engines]


def test_two_copies_share_the_work_and_answer_as_generate_does(
    two_copies: Server, client: openai.OpenAI
) -> None:
    before = _cpu_seconds(two_copies)
    assert len(before) == 2

    def ask(question: str) -> str:
        answer = _ask(client, [{"role": "user", "content": question}])
        return str(answer.choices[0].message.content)

    questions = QUESTIONS[:6]
    with ThreadPoolExecutor(len(questions)) as pool:
        answers = list(pool.map(ask, questions))
    assert all(
        late - early > 0.05 for early, late in zip(before, _cpu_seconds(two_copies), strict=True)
    )
    for question, answer in zip(questions, answers, strict=True):
        expected = real_models.tokenizer().decode(
            real_models.greedy(question, COUNT), skip_special_tokens=True
        )
        assert answer == expected


def test_a_schema_is_followed_at_every_temperature(client: openai.OpenAI) -> None:
    schema = {"name": "place", "schema": SCHEMA, "strict": True}
    for temperature in (0, 1.5):
        answer = _ask(
            client, [{"role": "user", "content": "Describe Paris as JSON."}], max_tokens=120,
            temperature=temperature, seed=3,
            response_format={"type": "json_schema", "json_schema": schema},
        )  # fmt: skip
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)


def test_a_regular_expression_is_followed(two_copies: Server) -> None:
    pattern = r"[0-9]{4}-(0[1-9]|1[0-2])-[0-3][0-9], (Rome|Kraków|東京)"
    parameters = {
        "grammar": {"type": "regex", "value": pattern},
        "max_new_tokens": 60,
        "do_sample": True,
        "temperature": 1.5,
        "seed": 5,
    }
    body = {"inputs": "Date and place of the meeting: ", "parameters": parameters}
    answer = requests.post(f"{two_copies.url}/generate", json=body, timeout=120)
    assert answer.ok, answer.text
    assert re.fullmatch(pattern, answer.json()["generated_text"])


@pytest.mark.parametrize("choice", ["required", "get_current_weather"])
def test_a_template_without_tools_gets_them_in_the_prompt(
    client: openai.OpenAI, choice: str
) -> None:
    plain = _ask(client, ASK_WEATHER)
    answer = _ask(
        client, ASK_WEATHER, tools=[WEATHER], tool_choice=choice, max_tokens=80,
        parallel_tool_calls=False,
    )  # fmt: skip
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens + 50
    _check_call(answer.choices[0])


def _check_call(choice: Any) -> None:
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.function.name == "get_current_weather"
    schema = WEATHER["function"]["parameters"]
    jsonschema.validate(json.loads(call.function.arguments), schema)


def test_tool_results_reach_a_template_without_tools(client: openai.OpenAI) -> None:
    called = _ask(
        client, ASK_WEATHER, tools=[WEATHER], tool_choice="required", max_tokens=80,
        parallel_tool_calls=False,
    ).choices[0].message  # fmt: skip
    sizes = []
    for content in ("21", "21 degrees, cloudless, and no wind"):
        result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": content}
        messages = [*ASK_WEATHER, called.model_dump(exclude_none=True), result]
        answer = _ask(client, messages, tools=[WEATHER], tool_choice="none")
        assert answer.choices[0].message.content
        sizes.append(answer.usage.prompt_tokens)
    more = real_models.tokenizer()(" degrees, cloudless, and no wind")["input_ids"]
    assert sizes[1] - sizes[0] == len(more)


def test_a_template_with_tools_gets_a_call_streamed(tool_client: openai.OpenAI) -> None:
    whole = _ask(
        tool_client, ASK_WEATHER, tools=[WEATHER], tool_choice="required", max_tokens=80,
        parallel_tool_calls=False,
    )  # fmt: skip
    _check_call(whole.choices[0])
    stream = _ask(
        tool_client, ASK_WEATHER, tools=[WEATHER], tool_choice="required", max_tokens=80,
        parallel_tool_calls=False, stream=True,
    )  # fmt: skip
    chunks = [chunk.choices[0] for chunk in stream]
    deltas = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    joined = "".join(delta.function.arguments or "" for delta in deltas)
    assert joined == whole.choices[0].message.tool_calls[0].function.arguments


def test_thoughts_that_the_template_opens_are_reasoning(tool_client: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": QUESTIONS[5]}]
    thinking = _ask(tool_client, question, reasoning_effort="low")
    message = thinking.choices[0].message.model_dump()
    assert message["reasoning_content"]
    assert not message["content"]
    counts = thinking.usage.completion_tokens_details
    assert counts.reasoning_tokens == thinking.usage.completion_tokens
    plain = _ask(tool_client, question).choices[0].message.model_dump()
    assert plain["content"]
    assert "reasoning_content" not in plain
