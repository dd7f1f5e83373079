"""Requests that their deadline ends, over a stream of tokens from a list."""

import time

import pytest

from container.errors import DeadlineExceeded
from container.frontend.generation.completion import Completion
from container.frontend.generation.request_context import Deadlines, RequestContext
from container.frontend.generation.running_group import RunningGroup
from container.frontend.generation.running_request import RunningRequest
from container.messages.engine import FinishReason, SamplingParams, TokenEvent
from container.text.detokenizer import Detokenizer
from container.text.stop_strings import StopStrings
from container.text.tokenizer import Tokenizer
from tests.support.connections import INFO
from tests.support.servers import DEMO_MODEL


class Inbox:
    """Gives the listed events, then waits; endless ones come until it is closed."""

    request_id = 1

    def __init__(self, events: list[TokenEvent], *, repeats: bool = False) -> None:
        self._events = events
        self._repeats = repeats
        self.is_closed = False

    def next_event(self, timeout_s: float) -> TokenEvent | None:
        if self._events and not (self._repeats and self.is_closed):
            return self._events[0] if self._repeats else self._events.pop(0)
        time.sleep(timeout_s)
        return None

    def close(self, seq_index: int | None = None) -> None:
        self.is_closed = self.is_closed or seq_index is None


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO_MODEL)


def _running(tokenizer: Tokenizer, stream: Inbox, count: int, stop: str = "") -> RunningRequest:
    completions = [
        Completion(
            index, tokenizer, Detokenizer(tokenizer, []), StopStrings([stop], keep_match=False)
        )
        for index in range(count)
    ]
    now = time.monotonic()
    return RunningRequest(
        [1], SamplingParams(99), stream, INFO, completions, now, now, deadline_at=now + 0.2
    )


def _tokens(tokenizer: Tokenizer, seq_index: int, text: str) -> list[TokenEvent]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [TokenEvent(1, seq_index, token_id) for token_id in ids]


def test_the_deadline_releases_buffered_text(tokenizer: Tokenizer) -> None:
    stream = Inbox(_tokens(tokenizer, 0, "one STO"))
    running = _running(tokenizer, stream, 1, stop="STOP")
    while not running.is_finished:
        last = running.next_event(9.0)
    assert running.completions[0].text == "one STO"
    assert (last.finish_reason, last.is_cut) == (FinishReason.DEADLINE, True)
    assert running.is_cut
    assert stream.is_closed
    assert all(not event.is_cut for event in running.completions[0].events)


def test_the_deadline_ends_unfinished_completions_only(tokenizer: Tokenizer) -> None:
    first, second = _tokens(tokenizer, 0, "one two"), _tokens(tokenizer, 1, "three")
    second[-1] = TokenEvent(1, 1, second[-1].token_id, finish_reason=FinishReason.LENGTH)
    running = _running(tokenizer, Inbox(first + second), 3)
    while not running.is_finished:
        running.next_event(9.0)
    reasons = [completion.finish_reason for completion in running.completions]
    assert reasons == [FinishReason.DEADLINE, FinishReason.LENGTH, FinishReason.DEADLINE]
    assert [completion.text for completion in running.completions] == ["one two", "three", ""]


def test_the_deadline_ends_a_stream_without_pauses(
    tokenizer: Tokenizer,
) -> None:
    running = _running(tokenizer, Inbox(_tokens(tokenizer, 0, "a"), repeats=True), 1)
    while not running.is_finished:
        running.next_event(9.0)
    assert running.is_cut


def test_without_a_token_it_is_an_error(tokenizer: Tokenizer) -> None:
    for running in (_running(tokenizer, Inbox([]), 2), RunningGroup([])):
        if isinstance(running, RunningGroup):
            running.requests.append(_running(tokenizer, Inbox([]), 1))
        with pytest.raises(DeadlineExceeded):
            running.wait_first_event()


def test_a_group_with_a_token_is_cut_whole(tokenizer: Tokenizer) -> None:
    stream = Inbox(_tokens(tokenizer, 0, "one"))
    group = RunningGroup([_running(tokenizer, stream, 1), _running(tokenizer, Inbox([]), 1)])
    group.requests[1].stream.request_id = 2
    group.wait_first_event()
    while not group.is_finished:
        group.next_event(9.0)
    assert group.is_cut
    assert [request.completions[0].text for request in group.requests] == ["one", ""]


def test_tokens_before_the_deadline_are_sent(tokenizer: Tokenizer) -> None:
    tokens = _tokens(tokenizer, 0, "one two three")
    group = RunningGroup([_running(tokenizer, Inbox(tokens), 1), _running(tokenizer, Inbox([]), 1)])
    group.requests[1].stream.request_id = 2
    group.wait_first_event()
    events = []
    while not group.is_finished:
        events.append(group.next_event(9.0))
    assert [each.event.is_cut for each in events] == [False] * (len(events) - 2) + [True] * 2
    assert "".join(each.event.text for each in events) == "one two three"


@pytest.mark.parametrize(
    ("streams", "requested", "expected"), [(False, None, 5), (True, None, 8), (True, 2, 2)]
)
def test_the_earliest_deadline_counts(
    streams: bool, requested: float | None, expected: float
) -> None:
    context = RequestContext(received_at=100.0, deadlines=Deadlines(5, 8))
    assert context.with_deadline(requested, streams=streams).deadline_at == 100 + expected
    assert context.with_deadline(9, streams=streams).deadline_at == 100 + (8 if streams else 5)
