"""Reasoning over the wire: a template that opens the thoughts, one that leaves it to the model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.support.servers import DEMO_MODEL, serving

QUESTION: Any = [{"role": "user", "content": "What is deep learning?"}]
# The demo model knows no thoughts of its own, so the template ends them where it is told to.
SWITCH = """
{%- if enable_thinking is defined and not enable_thinking -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- elif reasoning_effort is defined -%}
{{- '<think>\\n' -}}
{%- endif -%}
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder: Path = tmp_path_factory.mktemp("reasoning")
    template = folder / "template.jinja"
    template.write_text((DEMO_MODEL / "chat_template.jinja").read_text() + SWITCH)
    with serving(folder / "log", TOKENIZER_CONFIG_PATH=str(template)) as server:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)


def test_thoughts_that_the_prompt_begins_are_reasoning(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {
        "model": "tgi", "messages": QUESTION, "temperature": 0, "max_tokens": 40,
        "reasoning_effort": "low",
    }  # fmt: skip
    answer = client.chat.completions.create(**ask)
    message = answer.choices[0].message.model_dump()
    assert message["reasoning_content"]
    assert message["content"] == ""
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    counts = answer.usage.completion_tokens_details
    assert counts.reasoning_tokens == answer.usage.completion_tokens
    stream = client.chat.completions.create(stream=True, **ask)
    deltas = [chunk.choices[0].delta.model_dump() for chunk in stream]
    joined = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    assert joined == message["reasoning_content"]


@pytest.mark.parametrize(
    "switch", [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}]
)
def test_the_switch_reaches_the_template(client: openai.OpenAI, switch: dict[str, Any]) -> None:
    answer = client.chat.completions.create(
        model="tgi", messages=QUESTION, temperature=0, max_tokens=40, extra_body=switch
    )
    message = answer.choices[0].message.model_dump()
    assert message["content"]
    assert "reasoning_content" not in message


def test_responses_have_an_item_of_reasoning(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {
        "model": "tgi", "input": "What is deep learning?", "temperature": 0,
        "max_output_tokens": 40, "reasoning": {"effort": "low"},
    }  # fmt: skip
    answer = client.responses.create(**ask)
    [item] = answer.output
    assert item.type == "reasoning"
    assert item.content
    assert item.content[0].text
    events = list(client.responses.create(stream=True, **ask))
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == item.content[0].text


def test_the_switch_reaches_the_template_of_responses_too(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="tgi", input="What is deep learning?", temperature=0, max_output_tokens=40,
        reasoning={"effort": "none"},
    )  # fmt: skip
    assert [item.type for item in answer.output] == ["message"]


def test_anthropics_thinking_has_a_block_of_its_own(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"messages": QUESTION, "temperature": 0, "max_tokens": 40}
    url = f"{str(client.base_url).removesuffix('/v1/')}/v1/messages"

    def ask(**fields: Any) -> list[dict[str, Any]]:
        answer = requests.post(url, json=body | fields, timeout=60)
        blocks: list[dict[str, Any]] = answer.json()["content"]
        return blocks

    adaptive = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}
    [thought] = ask(**adaptive)
    assert (thought["type"], thought["signature"]) == ("thinking", "unsigned")
    assert thought["thinking"]
    hidden = {"thinking": {"type": "adaptive", "display": "omitted"}}
    assert ask(**adaptive | hidden) == [thought | {"thinking": ""}]
    for off in ({}, {"thinking": {"type": "disabled"}}):
        assert [block["type"] for block in ask(**off)] == ["text"]
    lines = requests.post(url, json=body | adaptive | {"stream": True}, timeout=60).text
    assert thought["thinking"] == "".join(
        json.loads(line.removeprefix("data: "))["delta"]["thinking"]
        for line in lines.splitlines()
        if '"thinking_delta"' in line
    )
