"""The official OpenAI client, sync and async, against a real server."""

import asyncio

import openai
import pytest
import requests

from tests.support.servers import Server

IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
QUESTION = [{"role": "user", "content": "What is deep learning?"}]


def test_chat(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="tgi", messages=QUESTION, temperature=0, max_tokens=100
    )
    choice = chat.choices[0]
    assert choice.finish_reason == "stop"
    assert "learning" in choice.message.content
    assert chat.id.startswith("chatcmpl-")
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens
    assert chat.model.endswith("demo-model")


def test_the_stream_adds_up_to_the_whole_answer(client: openai.OpenAI) -> None:
    ask = {"model": "any/name", "messages": QUESTION, "temperature": 0, "max_tokens": 100}
    whole = client.chat.completions.create(**ask)
    chunks = list(
        client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(c.choices[0].delta.role is None for c in chunks[1:] if c.choices)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage
    assert {c.model for c in chunks} == {"any/name"}


def test_the_stream_helper_builds_the_same_message(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="tgi", messages=QUESTION, temperature=0, max_tokens=200
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.role == "assistant"
    assert message.content


def test_async_clients_share_the_server(server: Server) -> None:
    async def ask_all() -> list[str]:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-")

        async def ask(stream: bool) -> str:
            reply = await client.chat.completions.create(
                model="", messages=QUESTION, temperature=0, max_tokens=60, stream=stream
            )
            if not stream:
                return reply.choices[0].message.content
            return "".join([c.choices[0].delta.content or "" async for c in reply])

        try:
            return await asyncio.gather(*(ask(index % 2 == 0) for index in range(12)))
        finally:
            await client.close()

    assert len(set(asyncio.run(ask_all()))) == 1


def test_a_seed_repeats_and_another_differs(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        reply = client.chat.completions.create(
            model="tgi", messages=QUESTION, temperature=5, seed=seed, max_tokens=40
        )
        return reply.choices[0].message.content

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


def test_a_stop_string_is_dropped(client: openai.OpenAI) -> None:
    ask = {"model": "tgi", "messages": QUESTION, "temperature": 0, "max_tokens": 100}
    whole = client.chat.completions.create(**ask).choices[0].message.content
    stop = whole[20:26]  # cuts through tokens
    choice = client.chat.completions.create(**ask, stop=stop).choices[0]
    assert choice.message.content == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"
    chunks = client.chat.completions.create(**ask, stop=[stop, "never"], stream=True)
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert streamed == choice.message.content


def test_logprobs_are_the_models_own(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(
        model="tgi", messages=QUESTION, temperature=0, max_tokens=5, logprobs=True
    ).choices[0]
    assert len(choice.logprobs.content) == 5
    assert "".join(t.token for t in choice.logprobs.content) == choice.message.content
    assert all(t.logprob <= 0 for t in choice.logprobs.content)


def test_length_is_the_finish_reason_of_a_cut_answer(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tgi", messages=QUESTION, max_completion_tokens=3)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 3


def test_content_parts_and_system_messages(client: openai.OpenAI) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": [{"type": "text", "text": "What is deep"},
                                     {"type": "text", "text": " learning?"}]},
    ]  # fmt: skip
    plain = [messages[0], QUESTION[0]]
    texts = [
        client.chat.completions.create(model="tgi", messages=m, temperature=0, max_tokens=20)
        .choices[0].message.content
        for m in (messages, plain)
    ]  # fmt: skip
    assert texts[0] == texts[1]


def test_a_trailing_assistant_message_is_continued(client: openai.OpenAI) -> None:
    begun = [*QUESTION, {"role": "assistant", "content": "Deep learning is"}]
    reply = client.chat.completions.create(
        model="tgi", messages=begun, temperature=0, max_tokens=20
    )
    whole = client.chat.completions.create(
        model="tgi", messages=QUESTION, temperature=0, max_tokens=20
    )
    continued = "Deep learning is" + reply.choices[0].message.content
    assert continued.startswith(whole.choices[0].message.content[:30])


def test_models(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert len(models) == 1
    assert models[0].id.endswith("demo-model")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"messages": []}, "messages"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10_000_000}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": 5}, "stop"),
        ({"seed": "x"}, "seed"),
        ({"n": 1000}, "n"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1000}}, "logit_bias"),
        ({"logit_bias": {"5" * 5000: 1}}, "logit_bias"),
        ({"stop": [""]}, "stop"),
        ({"model": "x" * 1001}, "model"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"messages": [{"role": "user", "content": "x" * 20_000}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].image_url"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input_is_a_400_that_names_the_field(
    client: openai.OpenAI, change: dict, field: str, stream: bool
) -> None:
    ask = {"model": "tgi", "messages": QUESTION, "stream": stream} | change
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ask)
    assert caught.value.param == field
    assert field.split("[")[0] in caught.value.message


def test_n_choices_streamed_and_not(client: openai.OpenAI) -> None:
    ask = {"model": "tgi", "messages": QUESTION, "temperature": 5, "seed": 3, "max_tokens": 12}
    whole = client.chat.completions.create(**ask, n=3)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert whole.usage.completion_tokens <= 36
    streamed = ["", "", ""]
    reasons: list[int] = []
    for chunk in client.chat.completions.create(**ask, n=3, stream=True):
        [choice] = chunk.choices
        streamed[choice.index] += choice.delta.content or ""
        reasons += [choice.index] if choice.finish_reason else []
    assert streamed == texts
    assert sorted(reasons) == [0, 1, 2]


def test_logit_bias_forces_and_forbids(client: openai.OpenAI, server: Server) -> None:
    ask = {"model": "tgi", "messages": QUESTION, "temperature": 0, "max_tokens": 3}
    token = client.chat.completions.create(**ask, logprobs=True).choices[0].logprobs.content[0]
    body = {"inputs": "x", "parameters": {"max_new_tokens": 1, "details": True}}
    some_id = requests.post(f"{server.url}/generate", json=body, timeout=30).json()["details"][
        "tokens"
    ][0]["id"]
    forced = client.chat.completions.create(**ask, logit_bias={str(some_id): 100})
    assert forced.choices[0].message.content != token.token


def test_top_logprobs_come_with_bytes(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(
        model="tgi", messages=QUESTION, temperature=0, max_tokens=3, logprobs=True, top_logprobs=4
    ).choices[0]
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 4
        assert token.top_logprobs[0].token == token.token
        assert bytes(token.bytes).decode() == token.token


def test_a_repeated_prompt_is_cached(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Tell me about caching. " * 12}]
    ask = {"model": "tgi", "messages": messages, "max_tokens": 2, "temperature": 0}
    client.chat.completions.create(**ask)
    usage = client.chat.completions.create(**ask).usage
    assert usage.prompt_tokens_details.cached_tokens >= 32


def test_min_tokens_ignore_eos_and_stop_token_ids(client: openai.OpenAI) -> None:
    ask = {"model": "tgi", "messages": QUESTION, "temperature": 0}
    plain = client.chat.completions.create(**ask, max_tokens=200).usage.completion_tokens
    extra = {"min_tokens": plain + 5}
    longer = client.chat.completions.create(**ask, max_tokens=200, extra_body=extra)
    assert longer.usage.completion_tokens > plain
    endless = client.chat.completions.create(
        **ask, max_tokens=plain + 9, extra_body={"ignore_eos": True}
    )
    assert endless.usage.completion_tokens == plain + 9


def test_tools_without_a_tool_take_no_choice(server: Server) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        body = {"messages": QUESTION, "max_tokens": 3, "tools": [], "tool_choice": choice}
        answer = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "tool_choice"


def test_models_by_their_id(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError, match="known are"):
        client.models.retrieve("another/model")


def test_every_answer_names_its_request(server: Server) -> None:
    mine = {"x-request-id": "mine-1"}
    for path in ("/ping", "/v1/models", "/v1/nothing", "/metrics"):
        answer = requests.get(f"{server.url}{path}", headers=mine, timeout=30)
        assert answer.headers["x-request-id"] == answer.headers["request-id"] == "mine-1"
    bodies = ({"messages": QUESTION, "max_tokens": 2}, {}, {"messages": []})
    names = [
        requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).headers[
            "x-request-id"
        ]
        for body in bodies
    ]
    assert len(set(names)) == len(bodies)
    assert all(name.startswith("req_") for name in names)
    odd = requests.get(f"{server.url}/ping", headers={"x-request-id": "a b"}, timeout=30)
    assert odd.headers["x-request-id"].startswith("req_")
