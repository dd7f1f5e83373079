"""Bodies and events are of Anthropic's own types; each field has an effect or is refused."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import requests
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from anthropic.types import message_create_params as stable
from anthropic.types.beta import BetaMessage, BetaMessageTokensCount, BetaRawMessageStreamEvent
from anthropic.types.beta import message_create_params as beta
from anthropic.types.content_block_param import ContentBlockParam
from anthropic.types.tool_union_param import ToolUnionParam
from pydantic import TypeAdapter
from typing_extensions import get_type_hints

from tests.sdk.conftest import KEY
from tests.support.aws.local_sagemaker import REAL_SERVER
from tests.support.chats.anthropic_tools import WEATHER
from tests.support.servers import DEMO_MODEL, ROOT, Server, serving

PYTHON = REAL_SERVER[0]
STABLE: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
BETA: TypeAdapter[Any] = TypeAdapter(BetaRawMessageStreamEvent)
ANNOTATED_WEATHER: dict[str, Any] = WEATHER | {
    "eager_input_streaming": True,
    "input_examples": [{"location": "Paris"}],
    "cache_control": {"type": "ephemeral"},
}
QUESTION: dict[str, Any] = {
    "model": "claude-sonnet",
    "max_tokens": 60,
    "temperature": 0,
    "messages": [{"role": "user", "content": "What is deep learning?"}],
}
CALL: dict[str, Any] = {
    "tools": [ANNOTATED_WEATHER],
    "tool_choice": {"type": "any"},
    "max_tokens": 200,
}
# Opens the thoughts where they are asked for, which the model never ends; else they are empty.
SWITCH = """
{%- if enable_thinking is defined and enable_thinking -%}{{- '<think>\\n' -}}
{%- else -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
"""


def ask(server: Server, path: str = "/v1/messages", **body: Any) -> requests.Response:
    headers = {
        "x-api-key": KEY,
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,context-management-2025-06-27",
    }
    url = f"{server.url}{path}?beta=true"
    return requests.post(url, json=body, headers=headers, timeout=60)


def check(server: Server, **body: Any) -> dict[str, Any]:
    """Ask for a whole answer and for a stream, check both; return the whole one."""
    whole = ask(server, **body)
    assert whole.status_code == 200, whole.text
    Message.model_validate(whole.json())
    BetaMessage.model_validate(whole.json())
    text = ask(server, **body, stream=True).text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if "data: " in line]
    assert json.loads(lines[-1])["type"] == "message_stop"
    for line in lines:
        if json.loads(line)["type"] != "ping":  # which the package leaves out of its union
            STABLE.validate_json(line)
            BETA.validate_json(line)
    answer: dict[str, Any] = whole.json()
    return answer


@pytest.mark.parametrize(
    "fields", [{}, CALL, CALL | {"max_tokens": 9}, {"stop_sequences": ["learning"]}]
)
def test_texts_calls_and_cut_calls(server: Server, fields: dict[str, Any]) -> None:
    check(server, **QUESTION | fields)


def test_thoughts(tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text((DEMO_MODEL / "chat_template.jinja").read_text() + SWITCH)
    settings = {"TOKENIZER_CONFIG_PATH": str(template), "API_KEY": KEY}
    with serving(tmp_path / "log", python=PYTHON, **settings) as thinker:
        for thinking in (
            {"type": "adaptive"},
            {"type": "enabled", "budget_tokens": 20, "display": "omitted"},
        ):
            answer = check(thinker, **QUESTION, thinking=thinking)
            assert [block["type"] for block in answer["content"]] == ["thinking"]
            details = answer["usage"]["output_tokens_details"]
            assert details["thinking_tokens"] == answer["usage"]["output_tokens"]
        again = [*QUESTION["messages"], {"role": "assistant", "content": answer["content"]},
                 {"role": "user", "content": "Go on."}]  # fmt: skip
        check(thinker, **QUESTION | {"messages": again}, thinking={"type": "disabled"})


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that reads images, made by the server's environment, since this one has no torch."""
    folder = tmp_path_factory.mktemp("vision")
    code = (
        "import pathlib, sys; from tests.support.models import tiny_vision; "
        "tiny_vision.save('llava', pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([PYTHON, "-c", code, folder], cwd=ROOT, check=True, capture_output=True)
    with serving(folder / "log", folder, python=PYTHON, API_KEY=KEY) as running:
        yield running


PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJg"
    "gg=="
)


def test_images_in_messages_and_results(seeing: Server) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    image = {"type": "image", "source": source, "cache_control": {"type": "ephemeral"}}
    text = {"type": "text", "text": "What is this?"}
    use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [text, image]}
    look = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
    check(seeing, **QUESTION | {"messages": [{"role": "user", "content": [image, text]}]})
    turns = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    check(seeing, **QUESTION | {"messages": turns}, tools=[look])


def test_requests_of_claude_code(server: Server) -> None:
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    uses = [
        {"type": "tool_use", "id": f"toolu_{i}", "name": "get_weather", "input": {"location": "x"}}
        for i in (1, 2)
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": False,
         "content": [{"type": "text", "text": "21"}, {"type": "text", "text": "degrees"}]},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": "18 degrees", **mark},
    ]  # fmt: skip
    thought = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
    reminder = {"type": "text", "text": "<system-reminder>Be short.</system-reminder>"}
    body: dict[str, Any] = {
        "model": "claude-opus", "max_tokens": 32000, "temperature": 1,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.0"},
            {"type": "text", "text": "You are a CLI.", **mark},
        ],
        "messages": [
            {"role": "user", "content": [reminder, {"type": "text", "text": "Weather?", **mark}]},
            {"role": "assistant", "content": [thought, {"type": "text", "text": "I look."}, *uses]},
            {"role": "user", "content": [*results, {"type": "text", "text": "Well?", **mark}]},
        ],
        "tools": [ANNOTATED_WEATHER, ANNOTATED_WEATHER | {"name": "hidden", "defer_loading": True}],
        "metadata": {"user_id": '{"device_id":"d","session_id":"s"}'},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "medium"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "service_tier": "auto",
    }  # fmt: skip
    body = json.loads(json.dumps(body).replace("32000", "40"))
    answer = check(server, **body)
    assert answer["context_management"] == {"applied_edits": []}
    one = {"type": "tool_uses", "value": 1}
    clears = {"edits": [{"type": "clear_tool_uses_20250919", "keep": one, "trigger": one}]}
    [edit] = check(server, **body | {"context_management": clears})["context_management"][
        "applied_edits"
    ]
    assert edit["cleared_tool_uses"] == 1
    counted = {
        name: body[name] for name in ("model", "system", "messages", "tools", "context_management")
    }
    answer = ask(server, "/v1/messages/count_tokens", **counted).json()
    MessageTokensCount.model_validate(answer)
    BetaMessageTokensCount.model_validate(answer)
    assert answer["context_management"]["original_input_tokens"] == answer["input_tokens"]


OFFERED = {
    "max_tokens", "messages", "model", "cache_control", "context_management", "metadata",
    "output_config", "service_tier", "stop_sequences", "system", "thinking", "tool_choice",
    "tools", "temperature", "top_k", "top_p", "stream",
}  # fmt: skip
HEADERS = {"betas", "user_profile_id", "workspace_id"}
NAMES = {
    *stable.MessageCreateParamsBase.__annotations__,
    *beta.MessageCreateParamsBase.__annotations__,
}


@pytest.mark.parametrize("name", sorted(NAMES - OFFERED - HEADERS))
def test_fields_without_effect_are_refused_by_name(server: Server, name: str) -> None:
    value: Any = "fast" if name in ("speed", "inference_geo") else {"type": "x"}
    refused = ask(server, **QUESTION, **{name: value})
    assert refused.status_code == 400
    assert f"`{name}`" in refused.json()["error"]["message"]
    assert ask(server, **QUESTION, **{name: None}).status_code == 200


def _types(union: Any) -> list[str]:
    """The values of `type` of a union's members."""
    members = [get_type_hints(member).get("type") for member in get_args(union)]
    return sorted({value for member in members for value in _literals(member)})


def _literals(hint: Any) -> Iterator[str]:
    for inner in get_args(hint):
        if isinstance(inner, str):
            yield inner
        else:
            yield from _literals(inner)


BLOCKS = {"text", "image", "document", "search_result", "thinking", "redacted_thinking", "tool_use",
          "tool_result"}  # fmt: skip


@pytest.mark.parametrize("kind", [one for one in _types(ContentBlockParam) if one not in BLOCKS])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_other_blocks_are_refused_by_name(server: Server, kind: str, role: str) -> None:
    turns = [*QUESTION["messages"], {"role": role, "content": [{"type": kind}]}]
    refused = ask(server, **QUESTION | {"messages": turns})
    assert refused.status_code == 400
    assert kind in refused.json()["error"]["message"]


@pytest.mark.parametrize("kind", [one for one in _types(ToolUnionParam) if one != "custom"])
def test_tools_that_anthropic_runs_are_refused_by_name(server: Server, kind: str) -> None:
    refused = ask(server, **QUESTION, tools=[{"type": kind, "name": "a"}])
    assert refused.status_code == 400
    assert kind in refused.json()["error"]["message"]
