"""huggingface_hub's InferenceClient, unmodified, against a live server."""

import asyncio

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError, ValidationError

from tests.support.servers import Server

PROMPT = "<|im_start|>user\nWhat is deep learning?<|im_end|>\n<|im_start|>assistant\n"
MESSAGES = [{"role": "user", "content": "What is deep learning?"}]


@pytest.fixture(scope="module")
def client(server: Server) -> InferenceClient:
    return InferenceClient(server.url, timeout=60)


@pytest.mark.parametrize("path", ["", "/generate", "/invocations"])
def test_text_generation(server: Server, path: str) -> None:
    client = InferenceClient(f"{server.url}{path}", timeout=60)
    text = client.text_generation(PROMPT, max_new_tokens=30, return_full_text=False)
    assert text.startswith("Deep learning")


def test_details(client: InferenceClient) -> None:
    answer = client.text_generation(
        PROMPT, details=True, max_new_tokens=10, decoder_input_details=True, top_n_tokens=2,
        return_full_text=False,
    )  # fmt: skip
    assert answer.details.finish_reason == "length"
    assert answer.details.generated_tokens == len(answer.details.tokens) == 10
    assert len(answer.details.prefill) > 5
    assert answer.details.top_tokens[0][0]["id"] == answer.details.tokens[0].id


def test_best_of(client: InferenceClient) -> None:
    answer = client.text_generation("Tell", details=True, do_sample=True, best_of=2)
    assert len(answer.details.best_of_sequences) == 1


def test_stream(client: InferenceClient) -> None:
    params = {"max_new_tokens": 10, "return_full_text": False}
    whole = client.text_generation(PROMPT, **params)
    assert "".join(client.text_generation(PROMPT, stream=True, **params)) == whole
    events = list(client.text_generation(PROMPT, stream=True, details=True, **params))
    assert events[-1].generated_text == whole
    assert events[-1].details.generated_tokens == 10
    assert events[-1].details.input_length > 5


def test_a_wrong_parameter_is_a_typed_error(client: InferenceClient) -> None:
    with pytest.raises(ValidationError, match="`temperature` must be strictly positive"):
        client.text_generation("a", temperature=-1.0)
    with pytest.raises(ValidationError, match="`best_of`"):
        list(client.text_generation("a", best_of=2, do_sample=True, stream=True))


def test_chat_completion(client: InferenceClient) -> None:
    chat = client.chat_completion(MESSAGES, max_tokens=30, logprobs=True, top_logprobs=2, seed=1)
    [choice] = chat.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert len(choice.logprobs.content) == chat.usage.completion_tokens
    assert chat.model == "dummy"


def test_chat_completion_streams(client: InferenceClient) -> None:
    params = {"max_tokens": 30, "temperature": 0.0}
    whole = client.chat_completion(MESSAGES, **params)
    chunks = list(
        client.chat_completion(
            MESSAGES, stream=True, stream_options={"include_usage": True}, **params
        )
    )
    contents = [choice.delta.content for chunk in chunks for choice in chunk.choices]
    assert "".join(contents) == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_wrong_chat_is_an_error_with_our_message(client: InferenceClient) -> None:
    with pytest.raises(HfHubHTTPError, match="`top_p` must be") as caught:
        client.chat_completion(MESSAGES, top_p=3.0)
    assert caught.value.response.status_code == 400


def test_a_schema_is_followed(client: InferenceClient) -> None:
    schema = {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}},
        "required": ["sure"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    chat = client.chat_completion(MESSAGES, response_format=form, max_tokens=40, seed=1)
    assert "sure" in chat.choices[0].message.content
    grammar = {"type": "json", "value": schema}
    text = client.text_generation(PROMPT, grammar=grammar, max_new_tokens=40)
    assert "sure" in text


def test_endpoint_info_and_health(server: Server) -> None:
    client = InferenceClient(server.url, provider="hf-inference")
    info = client.get_endpoint_info()
    assert info["max_total_tokens"] == 2048
    assert info["max_best_of"] == 2
    assert client.health_check()


def test_the_asynchronous_client(server: Server) -> None:
    async def run() -> None:
        async with AsyncInferenceClient(server.url, timeout=60) as client:
            params = {"max_new_tokens": 8, "return_full_text": False}
            whole = await client.text_generation(PROMPT, **params)
            pieces = [
                piece async for piece in await client.text_generation(PROMPT, stream=True, **params)
            ]
            assert "".join(pieces) == whole
            chat = await client.chat_completion(MESSAGES, max_tokens=5)
            assert chat.choices[0].message.content

    asyncio.run(run())
