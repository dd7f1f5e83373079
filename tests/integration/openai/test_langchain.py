"""LangChain's own client for OpenAI's API: chat, streams, tools, structured output."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from tests.support.servers import Server

QUESTION = "What is the weather in Paris?"


@tool
def get_current_weather(location: str, unit: Literal["celsius", "fahrenheit"]) -> str:
    """Get the current weather"""
    return '{"temperature": 21}'


class Animal(BaseModel):
    """An animal."""

    model_config = ConfigDict(extra="forbid")

    kind: str = Field(max_length=12)
    legs: int


@pytest.fixture(scope="module")
def make_model(server: Server) -> Iterator[Callable[..., ChatOpenAI]]:
    with openai.DefaultHttpxClient() as http:

        def make(**options: Any) -> ChatOpenAI:
            return ChatOpenAI(
                model="tgi",
                base_url=f"{server.url}/v1",
                api_key=SecretStr("-"),
                temperature=0,
                max_retries=0,
                http_client=http,
                **options,
            )

        yield make


@pytest.fixture(scope="module")
def model(make_model: Callable[..., ChatOpenAI]) -> ChatOpenAI:
    return make_model()


def test_chat_and_stream(model: ChatOpenAI) -> None:
    answer = model.invoke("What is deep learning?")
    assert isinstance(answer, AIMessage)
    assert str(answer.content).startswith("Deep learning")
    assert answer.usage_metadata is not None
    pieces = list(model.stream("What is deep learning?"))
    assert len(pieces) > 3
    assert "".join(str(piece.content) for piece in pieces) == answer.content


def test_a_loop_of_tools(model: ChatOpenAI) -> None:
    able = model.bind_tools([get_current_weather])
    messages: list[HumanMessage | AIMessage | ToolMessage] = [HumanMessage(QUESTION)]
    first = able.invoke(messages)
    assert isinstance(first, AIMessage)
    [call] = first.tool_calls
    assert call["name"] == "get_current_weather"
    assert "Paris" in call["args"]["location"]
    messages += [
        first,
        ToolMessage(get_current_weather.invoke(call["args"]), tool_call_id=call["id"]),
    ]
    second = able.invoke(messages)
    assert "21" in str(second.content)


def test_a_forced_and_streamed_tool(model: ChatOpenAI) -> None:
    forced = model.bind_tools([get_current_weather], tool_choice="get_current_weather")
    joined: AIMessageChunk | None = None
    for piece in forced.stream(QUESTION):
        assert isinstance(piece, AIMessageChunk)
        joined = piece if joined is None else joined + piece
    assert joined is not None
    assert [call["name"] for call in joined.tool_calls] == ["get_current_weather"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(
    model: ChatOpenAI, method: Literal["json_schema", "function_calling"]
) -> None:
    answer = model.with_structured_output(Animal, method=method).invoke("Name an animal.")
    assert isinstance(answer, Animal)


def test_the_responses_api(make_model: Callable[..., ChatOpenAI]) -> None:
    model = make_model(use_responses_api=True)
    assert str(model.invoke("What is deep learning?").text).startswith("Deep learning")
    assert len(list(model.stream("What is deep learning?"))) > 3
