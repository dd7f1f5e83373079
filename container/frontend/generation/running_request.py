"""Completions: from token events to text, and the request that they belong to.

A frontend's domain objects; no HTTP, no dialect. One greenlet, the request's own, uses each.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from container.frontend.clients.engine_client import TokenStream
from container.messages.engine import FinishReason, PromptFacts, SamplingParams, TokenEvent
from container.text.detokenizer import Detokenizer
from container.text.stop_strings import StopStrings
from container.text.tokenizer import Tokenizer

# How long an answer may wait for its first token before it is begun without one: until then a
# refusal by the engine can still have its own status code.
FIRST_EVENT_S = 10.0
NOTHING_KNOWN = PromptFacts(queue_s=0.0, cached_tokens=0)


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token as text, alone, with its log-probability where that was asked for."""

    token_id: int
    text: str
    logprob: float | None
    is_special: bool


@dataclass(frozen=True, slots=True)
class TextEvent:
    """One new token of a completion. `text` is what may be given out now: it may be empty, or
    more than the token's own when something was held back."""

    seq_index: int
    token: TokenText
    text: str
    finish_reason: FinishReason | None
    top: list[TokenText]


@dataclass(slots=True)
class Completion:
    """The text of one sequence, as far as it has come; `stop_string` is the one that ended it."""

    seq_index: int
    tokenizer: Tokenizer
    detokenizer: Detokenizer
    stops: StopStrings
    text: str = ""
    events: list[TextEvent] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_string: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.events)

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of its tokens."""
        return sum(event.token.logprob or 0.0 for event in self.events) / max(1, self.num_tokens)

    def take(self, token: TokenEvent) -> TextEvent:
        """Turn the next token into text."""
        text = self.detokenizer.add(token.token_id)
        token_shown = token_text(self.tokenizer, token.token_id, token.logprob)
        if not token_shown.is_special:
            token_shown = replace(token_shown, text=text)
        released, reason = self._stop(text, token.finish_reason)
        self.text += released
        self.finish_reason = reason
        top = [token_text(self.tokenizer, token_id, logprob) for token_id, logprob in token.top]
        event = TextEvent(self.seq_index, token_shown, released, reason, top)
        self.events.append(event)
        return event

    def _stop(self, text: str, reason: FinishReason | None) -> tuple[str, FinishReason | None]:
        if reason is FinishReason.STOP:
            return self.stops.flush(), reason  # a stop token gives no text
        if reason is not None:
            text += self.detokenizer.flush()
        released = self.stops.add(text)
        if released.is_stopped:
            self.stop_string = released.stop
            return released.text, FinishReason.STOP
        if reason is not None:
            return released.text + self.stops.flush(), reason
        return released.text, None


@dataclass(frozen=True, slots=True)
class Times:
    """Where a finished request's time went, in seconds."""

    total_s: float
    validation_s: float
    queue_s: float
    inference_s: float
    first_token_s: float
    per_token_s: float


@dataclass(slots=True)
class RunningRequest:
    """A submitted request: its completions, and when things happened to it (monotonic seconds).

    `gaps` are the seconds between its events.
    """

    prompt_ids: list[int]
    params: SamplingParams
    stream: TokenStream
    completions: list[Completion]
    received_at: float
    submitted_at: float
    prompt_chars: int = 0
    prompt: PromptFacts = NOTHING_KNOWN
    gaps: list[float] = field(default_factory=list)
    first_token_at: float | None = None
    last_token_at: float | None = None
    _buffered: TextEvent | None = None

    @property
    def requests(self) -> "list[RunningRequest]":
        """Itself: what it has in common with a group."""
        return [self]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far, over all completions."""
        return sum(completion.num_tokens for completion in self.completions)

    @property
    def is_finished(self) -> bool:
        """Whether every completion has ended and every event has been given."""
        return self._buffered is None and self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether every completion has ended."""
        return all(completion.finish_reason is not None for completion in self.completions)

    @property
    def times(self) -> Times:
        """Where the time went, once there is a token."""
        first = self.first_token_at or self.submitted_at
        last = self.last_token_at or first
        longest = max(completion.num_tokens for completion in self.completions)
        return Times(
            total_s=last - self.received_at,
            validation_s=self.submitted_at - self.received_at,
            queue_s=self.prompt.queue_s,
            inference_s=last - self.submitted_at - self.prompt.queue_s,
            first_token_s=first - self.received_at,
            per_token_s=(last - first) / max(1, longest - 1),
        )

    def wait_first_event(self) -> None:
        """Wait a while for the first token. Raises what the engine answers instead of it."""
        self._buffered = self.next_event(FIRST_EVENT_S)

    def next_event(self, timeout_s: float) -> TextEvent | None:
        """Wait for the next token; None when the time is up. Raises what ended the request."""
        event, self._buffered = self._buffered, None
        while event is None:
            token = self.stream.next_event(timeout_s)
            if token is None:
                return None
            event = self.take(token)
        return event

    def take(self, token: TokenEvent) -> TextEvent | None:
        """Turn a token into text; None for one that comes after a stop string."""
        if self.completions[token.seq_index].finish_reason is not None:
            return None
        now = time.monotonic()
        if self.last_token_at is None:
            self.first_token_at = now
        else:
            self.gaps.append(now - self.last_token_at)
        self.last_token_at = now
        if token.prompt is not None and token.seq_index == 0:
            self.prompt = token.prompt
        event = self.completions[token.seq_index].take(token)
        if event.finish_reason is FinishReason.STOP:
            self.stream.close(token.seq_index)
        return event

    def close(self) -> None:
        """Say that nobody reads on."""
        self.stream.close()


@dataclass(frozen=True, slots=True)
class GroupEvent:
    """An event of one of several requests."""

    index: int
    event: TextEvent


@dataclass(slots=True)
class RunningGroup:
    """Several requests of one client, whose streams share an inbox; read as one."""

    requests: list[RunningRequest]
    _buffered: list[GroupEvent] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """Whether every request has ended and every event has been given."""
        return not self._buffered and self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether every request has ended."""
        return all(request.has_ended for request in self.requests)

    def wait_first_event(self) -> None:
        """Wait a while until every request has a token. Raises what the engine answers instead."""
        deadline = time.monotonic() + FIRST_EVENT_S
        while any(request.first_token_at is None for request in self.requests):
            event = self._read(max(0.0, deadline - time.monotonic()))
            if event is None:
                return
            self._buffered.append(event)

    def next_event(self, timeout_s: float) -> GroupEvent | None:
        """Wait for the next token of any; None when the time is up. Raises what ended one."""
        return self._buffered.pop(0) if self._buffered else self._read(timeout_s)

    def close(self) -> None:
        """Say that nobody reads on."""
        for request in self.requests:
            request.close()

    def _read(self, timeout_s: float) -> GroupEvent | None:
        while True:
            token = self.requests[0].stream.next_event(timeout_s)
            if token is None:
                return None
            for index, request in enumerate(self.requests):
                if request.stream.request_id == token.request_id:
                    event = request.take(token)
                    if event is not None:
                        return GroupEvent(index, event)


E = TypeVar("E", covariant=True)


class Running(Protocol[E]):
    """What an answer waits for: a request, or a group of them."""

    @property
    def requests(self) -> list[RunningRequest]:
        """What runs in the engine."""
        ...

    @property
    def is_finished(self) -> bool:
        """Whether all has ended and every event has been given."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether all has ended."""
        ...

    def next_event(self, timeout_s: float) -> E | None:
        """Wait for the next event; None when the time is up. Raises what ended it."""
        ...

    def close(self) -> None:
        """Say that nobody reads on."""
        ...


def token_text(tokenizer: Tokenizer, token_id: int, logprob: float | None) -> TokenText:
    """Show a token alone."""
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    return TokenText(token_id, text, logprob, token_id in tokenizer.special_ids)
