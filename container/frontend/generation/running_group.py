"""Several running requests of one client, read as one."""

import time
from collections import deque
from dataclasses import dataclass, field

from container.frontend.generation.completion import TextEvent
from container.frontend.generation.running_request import (
    FIRST_EVENT_S,
    RunningRequest,
    read_events,
)
from container.messages.engine import TokenEvent


@dataclass(frozen=True, slots=True)
class GroupEvent:
    """An event of one of several requests."""

    index: int
    event: TextEvent


@dataclass(slots=True)
class RunningGroup:
    """Several requests of one client, whose streams share an inbox; read as one."""

    requests: list[RunningRequest]
    _buffered: deque[GroupEvent] = field(default_factory=deque)

    @property
    def deadline_at(self) -> float:
        """When it ends with the tokens so far (monotonic seconds)."""
        return min(request.deadline_at for request in self.requests)

    @property
    def is_cut(self) -> bool:
        """Whether the deadline has ended one of the requests."""
        return any(request.is_cut for request in self.requests)

    @property
    def is_finished(self) -> bool:
        """Whether every request has ended and every event has been read."""
        return not self._buffered and self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether every request has ended."""
        return all(request.has_ended for request in self.requests)

    def wait_first_event(self) -> None:
        """Wait until every request has a token, at most FIRST_EVENT_S. Raises a refusal."""
        until = time.monotonic() + FIRST_EVENT_S
        while any(request.first_token_at is None for request in self.requests):
            events = read_events(self, self.requests[0].stream, max(0.0, until - time.monotonic()))
            self._buffered.extend(events)
            if not events or self.is_cut:
                return

    def next_event(self, timeout_s: float) -> GroupEvent | None:
        """Wait for the next event of any request; None at the timeout.

        Raises the error that ended a request, or DeadlineExceeded if there is no token by then.
        """
        if not self._buffered:
            self._buffered.extend(read_events(self, self.requests[0].stream, timeout_s))
        return self._buffered.popleft() if self._buffered else None

    def cut(self) -> list[GroupEvent]:
        """End every request that has not ended, at the deadline."""
        return [
            GroupEvent(index, event)
            for index, request in enumerate(self.requests)
            if not request.has_ended
            for event in request.cut()
        ]

    def take(self, token: TokenEvent) -> GroupEvent | None:
        """Turn a token into text; None for one that comes after a stop string."""
        for index, request in enumerate(self.requests):
            if request.stream.request_id == token.request_id:
                event = request.take(token)
                return None if event is None else GroupEvent(index, event)
        return None

    def close(self) -> None:
        """Abort every request that has not ended."""
        for request in self.requests:
            request.close()
