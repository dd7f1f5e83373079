"""Bodies that containers get, and streams that end without their last event."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from sagemaker_deploy.proxy.endpoint import kind_of
from sagemaker_deploy.proxy.plans import Api, ClientRequest, Container, Plan, make_plan
from sagemaker_deploy.proxy.reading import read_whole, stream_bytes
from sagemaker_deploy.proxy.runtime.failures import CallFailed, Cause
from sagemaker_deploy.proxy.runtime.runtime_client import Answer
from sagemaker_deploy.proxy.targets import ContainerKind, Target
from sagemaker_deploy.proxy.translation.generate_request import generate_from_completion

MESSAGES = [{"role": "user", "content": "a"}]


def _plan(
    kind: ContainerKind, api: Api, path: str, body: dict[str, Any], served: str | None = None
) -> Plan:
    request = ClientRequest(api, path, {"model": "alias"} | body, "alias")
    target = Target(endpoint="a", served_model=served)
    return make_plan(request, Container(kind), target)


@pytest.mark.parametrize("api", [Api.CHAT, Api.MESSAGES])
@pytest.mark.parametrize(
    ("kind", "served", "model"),
    [
        (ContainerKind.TGI, None, "tgi"),
        (ContainerKind.LMI, None, None),
        (ContainerKind.TGI, "own", "own"),
        (ContainerKind.LMI, "own", "own"),
    ],
)
def test_the_proxys_name_of_a_model_is_not_sent(
    kind: ContainerKind, served: str | None, model: str | None, api: Api
) -> None:
    path = "/v1/messages" if api is Api.MESSAGES else "/v1/chat/completions"
    plan = _plan(kind, api, path, {"messages": MESSAGES, "max_tokens": 5}, served)
    assert plan.body.get("model") == model


@pytest.mark.parametrize("kind", [ContainerKind.TGI, ContainerKind.LMI])
@pytest.mark.parametrize("stream", [True, False])
def test_translated_messages_ask_for_usage(kind: ContainerKind, stream: bool) -> None:
    body = {"messages": MESSAGES, "max_tokens": 5, "stream": stream}
    plan = _plan(kind, Api.MESSAGES, "/v1/messages", body)
    assert plan.body["stream_options"] == {"include_usage": True}


def test_a_seed_of_0_is_sent() -> None:
    assert generate_from_completion({"prompt": "a", "seed": 0})["parameters"]["seed"] == 0
    assert "seed" not in generate_from_completion({"prompt": "a", "seed": None})["parameters"]


def test_refusals_in_plain_text_tell_a_container() -> None:
    text = "Failed to deserialize the JSON body into the target type: missing field `messages`"
    assert kind_of(text) is ContainerKind.TGI
    assert kind_of({"error": text}) is ContainerKind.TGI
    assert kind_of("Not Found") is ContainerKind.OURS


class FakeAnswer:
    """A stream of token events that ends, or fails, before the last one."""

    content_type = "text/event-stream"

    def __init__(self, texts: list[str], failure: CallFailed | None) -> None:
        self._events: list[dict[str, Any]] = [{"token": {"id": 1, "text": text}} for text in texts]
        self._failure = failure

    async def parts(self) -> AsyncIterator[bytes]:
        for event in self._events:
            yield b"data:" + json.dumps(event).encode() + b"\n\n"
        if self._failure:
            raise self._failure


CUT = CallFailed(Cause.TIMED_OUT, 504, "over 8 minutes")


@pytest.mark.parametrize("failure", [None, CUT])
def test_a_stream_that_ends_early_gives_its_text_and_an_error(
    failure: CallFailed | None,
) -> None:
    async def read(answer: Answer, plan: Plan) -> tuple[str, str]:
        content = b""
        try:
            async for part in stream_bytes(answer, plan, Api.COMPLETIONS):
                content += part
        except CallFailed as error:
            return content.decode(), error.message
        return content.decode(), ""

    body = {"prompt": "a", "stop": ["a long stop string"], "stream": True}
    plan = _plan(ContainerKind.TGI, Api.COMPLETIONS, "/v1/completions", body)
    answer = cast(Answer, FakeAnswer(["one", " two"], failure))
    content, message = asyncio.run(read(answer, plan))
    assert "[DONE]" not in content
    lines = [json.loads(line[6:]) for line in content.splitlines() if line]
    assert "".join(line["choices"][0]["text"] for line in lines) == "one two"
    assert message == ("over 8 minutes" if failure else "the endpoint's stream ended early")


def test_a_joined_answer_that_is_cut_has_the_text_held_back() -> None:
    answer = cast(Answer, FakeAnswer(["one", " two"], CUT))
    body = {"prompt": "a", "stop": ["a long stop string"]}
    plan = _plan(ContainerKind.TGI, Api.COMPLETIONS, "/v1/completions", body)
    whole = asyncio.run(read_whole(answer, plan))
    choice = json.loads(whole.body)["choices"][0]
    assert (choice["text"], choice["finish_reason"], whole.is_cut) == ("one two", "length", True)


def test_a_generate_answer_that_is_cut_has_its_last_token() -> None:
    class Chunks(FakeAnswer):
        def __init__(self) -> None:
            super().__init__([], CUT)
            self._events = [
                {"choices": [{"index": 0, "text": text, "token_ids": [1]}]}
                for text in ("one", " two")
            ]

    plan = _plan(ContainerKind.VLLM, Api.GENERATE, "/generate", {"inputs": "a"})
    whole = asyncio.run(read_whole(cast(Answer, Chunks()), plan))
    assert json.loads(whole.body)["generated_text"] == "one two"
