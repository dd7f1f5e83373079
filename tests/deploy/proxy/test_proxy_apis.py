"""Every API in front of every kind of container, with the clients' own libraries."""

from typing import Any

import anthropic
import openai
import pytest
import requests

from tests.support.chats.anthropic_tools import WEATHER

TEXT = "one two three"
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
CHATS = ("tgi", "lmi", "vllm", "templated")
ALL = ("tgi", "generate", "lmi", "vllm")


@pytest.fixture(scope="module")
def client(proxy: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{proxy}/v1", api_key="-", max_retries=0)


@pytest.fixture(scope="module")
def claude(proxy: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=proxy, api_key="-", max_retries=0)


@pytest.mark.parametrize("model", CHATS)
def test_a_chat_and_its_stream(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=MESSAGES)
    assert whole.object == "chat.completion"
    assert whole.choices[0].message.content == TEXT
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage
    assert whole.usage.total_tokens == 7
    chunks = list(client.chat.completions.create(model=model, messages=MESSAGES, stream=True))
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    )


@pytest.mark.parametrize("model", ["generate", "lmi", "vllm"])
def test_a_completion_and_its_stream(client: openai.OpenAI, model: str) -> None:
    whole = client.completions.create(model=model, prompt="Hello")
    assert whole.choices[0].text == TEXT
    assert whole.usage
    assert whole.usage.completion_tokens == 3
    chunks = list(client.completions.create(model=model, prompt="Hello", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == TEXT


def test_a_stop_string_in_tgis_text_is_dropped(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="generate", prompt="Hello", stop=["three", "x" * 9])
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("one two ", "stop")


@pytest.mark.parametrize("model", ["tgi", "lmi", "templated"])
def test_a_message_and_its_stream(claude: anthropic.Anthropic, model: str) -> None:
    question: Any = {"model": model, "max_tokens": 20, "messages": MESSAGES, "system": "Be kind."}
    whole = claude.messages.create(**question)
    assert (whole.content[0].text, whole.stop_reason) == (TEXT, "end_turn")
    with claude.messages.stream(**question) as stream:
        assert "".join(stream.text_stream) == TEXT
        assert stream.get_final_message().stop_reason == "end_turn"


def test_calls_of_tools_come_back_as_anthropics(claude: anthropic.Anthropic) -> None:
    call = {"type": "tool_use", "id": "c0", "name": "get_weather", "input": {"city": "Rome"}}
    result = {
        "type": "tool_result",
        "tool_use_id": "c0",
        "content": [{"type": "text", "text": "5"}],
    }
    turns = [*MESSAGES, {"role": "assistant", "content": [call]}]
    turns.append({"role": "user", "content": [result]})
    question: Any = {"model": "tgi", "max_tokens": 20, "messages": turns, "tools": [WEATHER]}
    answer = claude.messages.create(**question)
    assert answer.stop_reason == "tool_use"
    [block] = answer.content
    assert (block.type, block.name, block.input) == ("tool_use", "get_weather", {"city": "Paris"})


@pytest.mark.parametrize("model", ["generate", "lmi", "vllm"])
def test_generate_and_its_stream(proxy: str, model: str) -> None:
    body = {"inputs": "Hello", "parameters": {"details": True}, "model": model}
    whole = requests.post(f"{proxy}/generate", json=body, timeout=30).json()
    assert whole["generated_text"] == TEXT
    assert [token["text"] for token in whole["details"]["tokens"]] == ["one", " two", " three"]
    assert whole["details"]["finish_reason"] == "eos_token"
    array = requests.post(f"{proxy}/", json=body, timeout=30).json()
    assert array[0]["generated_text"] == TEXT
    text = requests.post(f"{proxy}/generate_stream", json=body, timeout=30).text
    assert text.count("data:") == 3
    assert '"generated_text":"one two three"' in text.replace('": "', '":"')


def test_embeddings_of_vllm_and_of_containers_with_inputs(client: openai.OpenAI) -> None:
    for model, vector in (("vllm", [0.5]), ("generate", [0.5, 0.25])):
        answer = client.embeddings.create(model=model, input=["a"], encoding_format="float")
        assert answer.data[0].embedding == vector


def test_models_are_those_of_the_proxy(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {*ALL, "templated"}
    assert client.models.retrieve("tgi").id == "tgi"
    with pytest.raises(openai.NotFoundError, match="known are: tgi"):
        client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    with pytest.raises(openai.NotFoundError, match="known are"):
        client.models.retrieve("gpt-5")


def test_what_a_container_has_not_is_refused_by_name(
    client: openai.OpenAI, claude: anthropic.Anthropic, proxy: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="MESSAGES_API_ENABLED"):
        client.chat.completions.create(model="generate", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="`n`"):
        client.completions.create(model="generate", prompt="a", n=2)
    with pytest.raises(openai.BadRequestError, match="no such API"):
        client.responses.create(model="tgi", input="a")
    document: Any = {"type": "document", "source": {"type": "text", "data": "a"}}
    messages: Any = [{"role": "user", "content": [document]}]
    with pytest.raises(anthropic.BadRequestError, match="document"):
        claude.messages.create(model="tgi", max_tokens=1, messages=messages)
    body = {"model": "vllm", "inputs": "a", "parameters": {"watermark": True}}
    answer = requests.post(f"{proxy}/generate", json=body, timeout=30)
    assert answer.status_code == 400
    assert "watermark" in answer.json()["error"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b""])
def test_bodies_that_are_no_objects(proxy: str, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/messages", "/generate"):
        answer = requests.post(proxy + path, data=body, timeout=30)
        assert answer.status_code == 400
        assert answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": 1},
        {"messages": [1]},
        {"messages": [{"role": "user", "content": [1]}]},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]},
        {"messages": [], "tools": [1]},
        {"messages": [], "tool_choice": 1, "tools": [{}]},
        {"messages": [], "metadata": 1, "system": 1, "output_config": []},
    ],
)
def test_malformed_messages_are_a_400(proxy: str, body: dict[str, Any]) -> None:
    answer = requests.post(f"{proxy}/v1/messages", json={"model": "tgi"} | body, timeout=30)
    assert answer.status_code == 400, answer.text
    assert answer.json()["type"] == "error"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": 1}),
        ("/v1/completions", {"prompt": "a", "temperature": "hot"}),
        ("/v1/completions", {"prompt": "a", "stop": 1}),
        ("/v1/completions", {"prompt": "a", "response_format": 1}),
        ("/v1/completions", {"prompt": "a", "response_format": {"type": "json_schema"}}),
        ("/generate", {"inputs": "a", "parameters": 1}),
    ],
)
def test_malformed_fields_of_translated_bodies_are_a_400(
    proxy: str, path: str, body: dict[str, Any]
) -> None:
    answer = requests.post(proxy + path, json={"model": "generate"} | body, timeout=30)
    assert answer.status_code == 400, answer.text
