"""TGI's own Python client, `text_generation` 0.7.0, unmodified, against a live server.

It declares huggingface_hub < 1.0, of which it needs one function that newer ones have too; so it is
installed without its dependencies (see the Makefile). Its streams of chat are left out: they fail
at the closing `[DONE]` with TGI as well.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from text_generation import AsyncClient, Client
from text_generation import errors as typed
from text_generation.errors import parse_error
from text_generation.types import FinishReason, Grammar, GrammarType, Message, StreamResponse

from container import errors
from container.frontend.web.error_responses import TGI, tgi_body
from tests.support.servers import Server, serving

pytestmark = [
    pytest.mark.filterwarnings("ignore:The `dict` method is deprecated"),
]
PROMPT = "<|im_start|>user\nWhat is deep learning?<|im_end|>\n<|im_start|>assistant\n"
WORDS = [Message(role="user", content="What is deep learning?")]


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server.url, timeout=60)


@pytest.fixture(scope="module")
def async_client(server: Server) -> AsyncClient:
    return AsyncClient(server.url, timeout=60)


def test_generate(client: Client) -> None:
    answer = client.generate(PROMPT, max_new_tokens=200, decoder_input_details=True)
    details = answer.details
    assert answer.generated_text.startswith("Deep learning")
    assert details.finish_reason is FinishReason.EndOfSequenceToken
    assert details.generated_tokens == len(details.tokens)
    assert details.prefill[0].logprob is None
    assert all(token.logprob <= 0 for token in details.prefill[1:])
    assert details.tokens[-1].special
    assert details.seed is None


def test_generate_takes_every_parameter(client: Client) -> None:
    answer = client.generate(
        PROMPT, do_sample=True, max_new_tokens=10, repetition_penalty=1.2, frequency_penalty=0.1,
        return_full_text=True, seed=3, stop_sequences=["learning"], temperature=0.5, top_k=10,
        top_p=0.9, truncate=1000, typical_p=0.95, watermark=True, decoder_input_details=True,
        top_n_tokens=2,
    )  # fmt: skip
    assert answer.generated_text.startswith(PROMPT)
    assert answer.details.seed == 3
    assert [len(top) for top in answer.details.top_tokens] == [2] * answer.details.generated_tokens


def test_best_of(client: Client) -> None:
    details = client.generate("Tell", do_sample=True, best_of=2, max_new_tokens=5).details
    [other] = details.best_of_sequences
    assert other.seed != details.seed
    assert other.generated_tokens == len(other.tokens)


def test_generate_stream(client: Client) -> None:
    whole = client.generate(PROMPT, max_new_tokens=30)
    events = list(client.generate_stream(PROMPT, max_new_tokens=30, top_n_tokens=1))
    assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
    assert events[-1].generated_text == whole.generated_text
    assert events[-1].details.finish_reason is whole.details.finish_reason
    assert all(event.details is None for event in events[:-1])


def test_a_grammar(client: Client) -> None:
    grammar = Grammar(type=GrammarType.Regex, value="[0-9]{3}-[0-9]{2}")
    assert client.generate(PROMPT, grammar=grammar).generated_text[3] == "-"


def test_chat(client: Client) -> None:
    chat = client.chat(WORDS, max_tokens=20, temperature=0.5, seed=1)
    assert chat.choices[0].message.content
    assert chat.choices[0].finish_reason in ("stop", "length")
    assert chat.usage["completion_tokens"] <= 20


def test_wrong_parameters_are_typed_errors(client: Client) -> None:
    with pytest.raises(typed.ValidationError, match="`stop` supports up to 4"):
        client.generate("a", stop_sequences=list("abcde"))
    with pytest.raises(typed.ValidationError, match="`max_new_tokens` must be <= 2048"):
        list(client.generate_stream("a", max_new_tokens=10_000))
    with pytest.raises(typed.ValidationError, match="must have less than"):
        client.generate("many " * 5000)
    with pytest.raises(typed.BadRequestError):
        client.chat([], max_tokens=1)


def test_a_wrong_path_is_a_typed_error(server: Server) -> None:
    with pytest.raises(typed.NotFoundError):
        Client(f"{server.url}/nowhere").generate("a")


def test_an_overloaded_server_is_a_typed_error(tmp_path: Path, endless_model: Path) -> None:
    with serving(tmp_path / "log", endless_model, MAX_CONCURRENT_REQUESTS="1") as busy:
        client = Client(busy.url, timeout=60)
        stream = client.generate_stream("a", max_new_tokens=1500)
        next(stream)
        with pytest.raises(typed.OverloadedError):
            client.generate("a")
        stream.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.GenerationFailed("x"), typed.GenerationError),
        (errors.Overloaded("x"), typed.OverloadedError),
        (errors.InvalidParameter("x"), typed.ValidationError),
        (errors.Unavailable("x"), typed.UnknownError),
        (errors.InternalError("x"), typed.UnknownError),
    ],
)
def test_the_client_parses_every_error(error: errors.ServingError, kind: type) -> None:
    assert isinstance(parse_error(TGI[type(error)].status, tgi_body(error)), kind)


def test_the_asynchronous_client(async_client: AsyncClient) -> None:
    async def all_of(events: AsyncIterator[StreamResponse]) -> list[StreamResponse]:
        return [event async for event in events]

    async def run() -> None:
        whole, events, chat = await asyncio.gather(
            async_client.generate(PROMPT, max_new_tokens=15),
            all_of(async_client.generate_stream(PROMPT, max_new_tokens=15)),
            async_client.chat(WORDS, max_tokens=15, seed=1, temperature=0.1),
        )
        assert events[-1].generated_text == whole.generated_text
        assert chat.choices[0].message.content
        with pytest.raises(typed.ValidationError, match="`stop`"):
            await async_client.generate("a", stop_sequences=list("abcde"))
        with pytest.raises(typed.ValidationError, match="`stop`"):
            await all_of(async_client.generate_stream("a", stop_sequences=list("abcde")))

    asyncio.run(run())
