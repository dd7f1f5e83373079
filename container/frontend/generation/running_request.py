"""Running requests: submitted prompts, and the events of their completions until the deadline.

A frontend's domain objects; no HTTP, no dialect. One greenlet, the request's own, uses each.
"""

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from container.frontend.clients.admission import deadline_exceeded
from container.frontend.clients.engine_client import TokenStream
from container.frontend.generation.completion import Completion, TextEvent
from container.messages.engine import (
    EngineInfo,
    FinishReason,
    PromptStats,
    SamplingParams,
    TokenEvent,
)
from container.text.tokenizer import Tokenizer

# How long an answer waits for its first token before it begins without one: until then a refusal by
# the engine can still have its own status code.
FIRST_EVENT_S = 10.0
NOTHING_KNOWN = PromptStats(queue_s=0.0, cached_tokens=0)


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
    """A submitted request: its completions and its times (monotonic seconds).

    `info` describes the model that answers it, `adapter` is its LoRA adapter, or empty. Rendering
    reads `info` from here, since the engine may drain or exit before the answer is rendered. `gaps`
    are the seconds between its events. At `deadline_at` it ends with the tokens so far.
    """

    prompt_ids: list[int]
    params: SamplingParams
    stream: TokenStream
    info: EngineInfo
    completions: list[Completion]
    received_at: float
    submitted_at: float
    prompt_chars: int = 0
    prompt: PromptStats = NOTHING_KNOWN
    gaps: list[float] = field(default_factory=list)
    first_token_at: float | None = None
    last_token_at: float | None = None
    deadline_at: float = math.inf
    adapter: str = ""
    _buffered: deque[TextEvent] = field(default_factory=deque)

    @property
    def requests(self) -> "list[RunningRequest]":
        """The request itself, as a group of one."""
        return [self]

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model that answers it."""
        return self.completions[0].tokenizer

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
        """Whether every completion has ended and every event has been read."""
        return not self._buffered and self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether every completion has ended."""
        return all(completion.finish_reason is not None for completion in self.completions)

    @property
    def is_cut(self) -> bool:
        """Whether the deadline has ended one of its completions."""
        return any(
            completion.finish_reason is FinishReason.DEADLINE for completion in self.completions
        )

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
        """Wait for the first token, at most FIRST_EVENT_S. Raises the engine's refusal."""
        self._buffered.extend(read_events(self, self.stream, FIRST_EVENT_S))

    def next_event(self, timeout_s: float) -> TextEvent | None:
        """Wait for the next event; None at the timeout.

        Raises the error that ended the request, or DeadlineExceeded if it has no token by then.
        """
        if not self._buffered:
            self._buffered.extend(read_events(self, self.stream, timeout_s))
        return self._buffered.popleft() if self._buffered else None

    def cut(self) -> list[TextEvent]:
        """End every completion that has not ended, at the deadline."""
        self.last_token_at = time.monotonic()
        self.close()
        return [
            completion.cut() for completion in self.completions if completion.finish_reason is None
        ]

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
        """Abort the request unless it has ended."""
        self.stream.close()


E = TypeVar("E", covariant=True)
T = TypeVar("T")


class Running(Protocol[E]):
    """The running work behind one answer: a request, or a group of them."""

    @property
    def requests(self) -> list[RunningRequest]:
        """The requests in the engine."""
        ...

    @property
    def is_finished(self) -> bool:
        """Whether every request has ended and every event has been read."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether every request has ended."""
        ...

    @property
    def is_cut(self) -> bool:
        """Whether the deadline has ended one of its completions."""
        ...

    @property
    def deadline_at(self) -> float:
        """When it ends with the tokens so far (monotonic seconds)."""
        ...

    def next_event(self, timeout_s: float) -> E | None:
        """Wait for the next event; None at the timeout. Raises the error that ended it."""
        ...

    def take(self, token: TokenEvent) -> E | None:
        """Turn a token into an event; None for one that comes after a stop string."""
        ...

    def cut(self) -> Sequence[E]:
        """End every request that has not ended, at the deadline."""
        ...

    def close(self) -> None:
        """Abort every request that has not ended."""
        ...


def read_events(running: Running[T], stream: TokenStream, timeout_s: float) -> Sequence[T]:
    """Wait for the next event of a stream; [] at the timeout.

    At the deadline, return the events that end the answer, or raise DeadlineExceeded if there is
    no token to answer with.
    """
    while True:
        remaining_s = max(0.0, running.deadline_at - time.monotonic())
        if remaining_s == 0.0:
            running.close()  # tokens that have arrived can still be read
        token = stream.next_event(min(timeout_s, remaining_s))
        if token is not None:
            event = running.take(token)
            if event is not None:
                return [event]
        elif remaining_s > timeout_s:
            return []
        elif any(request.completion_tokens for request in running.requests):
            return running.cut()
        else:
            raise deadline_exceeded()
