"""Requests with several completions, over a stream of tokens from a list."""

import pytest

from container.errors import Unavailable
from container.frontend.generation.completion import Completion
from container.frontend.generation.running_request import RunningRequest
from container.messages.engine import FinishReason, SamplingParams, TokenEvent
from container.text.detokenizer import Detokenizer
from container.text.stop_strings import StopStrings
from container.text.tokenizer import Tokenizer
from tests.support.connections import INFO
from tests.support.servers import DEMO_MODEL


class ListedStream:
    """Gives the listed events one by one, then the error, then nothing."""

    def __init__(self, events: list[TokenEvent], error: Exception | None = None) -> None:
        self.events = events
        self.error = error
        self.closed: list[int | None] = []

    def next_event(self, timeout_s: float) -> TokenEvent | None:
        if self.events:
            return self.events.pop(0)
        if self.error is not None:
            raise self.error
        return None

    def close(self, seq_index: int | None = None) -> None:
        self.closed.append(seq_index)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO_MODEL)


def _running(tokenizer: Tokenizer, stream: ListedStream, count: int, stop: str) -> RunningRequest:
    completions = [
        Completion(
            index, tokenizer, Detokenizer(tokenizer, []), StopStrings([stop], keep_match=False)
        )
        for index in range(count)
    ]
    return RunningRequest([1], SamplingParams(99), stream, INFO, completions, 0.0, 0.0)


def _tokens(tokenizer: Tokenizer, seq_index: int, text: str) -> list[TokenEvent]:
    return [
        TokenEvent(1, seq_index, token_id)
        for token_id in tokenizer.encode(text, add_special_tokens=False)
    ]


def test_tokens_behind_a_stop_string_do_not_reopen_a_completion(tokenizer: Tokenizer) -> None:
    first = _tokens(tokenizer, 0, "one STOP two three four")
    second = _tokens(tokenizer, 1, "other")
    second[-1] = TokenEvent(1, 1, second[-1].token_id, finish_reason=FinishReason.LENGTH)
    stream = ListedStream(first + second)
    running = _running(tokenizer, stream, 2, "STOP")
    while running.next_event(0.0) is not None:
        pass
    assert running.is_finished
    assert [completion.text for completion in running.completions] == ["one ", "other"]
    assert running.completions[0].finish_reason is FinishReason.STOP
    assert stream.closed == [0]


def test_a_stop_token_of_the_engine_gives_no_text(tokenizer: Tokenizer) -> None:
    events = _tokens(tokenizer, 0, "a b c")
    events[-1] = TokenEvent(1, 0, events[-1].token_id, finish_reason=FinishReason.STOP)
    running = _running(tokenizer, ListedStream(events), 1, "never")
    while running.next_event(0.0) is not None:
        pass
    assert running.completions[0].text == "a b"


def test_the_error_that_ends_a_stream_is_raised(tokenizer: Tokenizer) -> None:
    stream = ListedStream(_tokens(tokenizer, 0, "a"), Unavailable("gone"))
    running = _running(tokenizer, stream, 1, "never")
    running.wait_first_event()
    assert running.next_event(0.0) is not None
    with pytest.raises(Unavailable):
        running.next_event(0.0)
