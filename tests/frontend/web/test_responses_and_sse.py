from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import pytest
from flask import Flask, Response

from container.errors import GenerationFailed, ServingError
from container.frontend.generation.completion import Completion
from container.frontend.generation.running_request import RunningRequest
from container.frontend.generation.service import Service
from container.frontend.observability.metrics import Metrics
from container.frontend.web import responses
from container.frontend.web.error_responses import tgi_body
from container.messages.engine import FinishReason, SamplingParams, TokenEvent
from container.text.detokenizer import Detokenizer
from container.text.stop_strings import StopStrings
from container.text.tokenizer import Tokenizer
from tests.support.connections import INFO, NoEngine
from tests.support.servers import DEMO_MODEL


class Played:
    """A TokenStream from a list: None is a time of silence, an error ends it."""

    def __init__(self, items: list[TokenEvent | ServingError | None]) -> None:
        self._items = iter(items)

    def next_event(self, timeout_s: float) -> TokenEvent | None:
        item = next(self._items)
        if isinstance(item, ServingError):
            raise item
        return item

    def close(self, seq_index: int | None = None) -> None:
        """Nothing is left open."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO_MODEL)


def _streamed(tokenizer: Tokenizer, items: list[TokenEvent | ServingError | None]) -> bytes:
    completion = Completion(
        0, tokenizer, Detokenizer(tokenizer, [5]), StopStrings([], keep_match=True)
    )
    running = RunningRequest([5], SamplingParams(9), Played(items), INFO, [completion], 0.0, 0.0)

    def render(event: Any) -> Iterator[object]:
        yield {"token": event.token.token_id}

    with Flask("test").test_request_context():
        metrics = Metrics(Service(NoEngine(), NoEngine.tokenizer))
        response = responses.stream(running, render, tgi_body, metrics)
        return b"".join(response.response)


def test_a_silent_stream_is_kept_alive_with_comments(tokenizer: Tokenizer) -> None:
    last = TokenEvent(1, 0, 6, finish_reason=FinishReason.LENGTH)
    sent = _streamed(tokenizer, [TokenEvent(1, 0, 5), None, None, last])
    assert sent == b'data: {"token":5}\n\n:\n\n:\n\ndata: {"token":6}\n\n'


def test_an_error_after_the_first_byte_is_one_more_event(tokenizer: Tokenizer) -> None:
    sent = _streamed(tokenizer, [TokenEvent(1, 0, 5), GenerationFailed("broken")])
    assert sent == (
        b'data: {"token":5}\n\ndata: {"error":"Request failed during generation: broken",'
        b'"error_type":"generation"}\n\n'
    )


class Outcomes:
    """Counts outcomes as Metrics does."""

    def __init__(self) -> None:
        self.counted: list[str] = []

    def count_success(self) -> None:
        self.counted.append("success")

    def count_failure(self, _: object) -> None:
        self.counted.append("failure")

    def count_aborted(self) -> None:
        self.counted.append("aborted")


@pytest.mark.parametrize(
    ("num_read", "error", "outcome"),
    [(9, None, "success"), (9, GenerationFailed("broken"), "failure"), (1, None, "aborted"),
     (0, None, "aborted")],
)  # fmt: skip
def test_a_stream_counts_one_outcome_and_is_closed(
    num_read: int, error: Exception | None, outcome: str
) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"a"
        if error is not None:
            raise error
        yield b"b"

    outcomes, closed = Outcomes(), []
    counted = responses.CountedStream(
        chunks(),
        lambda error: error.message.encode(),
        cast(Metrics, outcomes),
        close=lambda: closed.append(True),
    )
    with Flask("test").test_request_context():
        response = Response(counted)
        sent = list(islice(response.response, num_read))
        response.close()
    assert b"".join(sent) == {"success": b"ab", "failure": b"abroken"}.get(outcome, b"a"[:num_read])
    assert outcomes.counted == [outcome]
    assert closed
