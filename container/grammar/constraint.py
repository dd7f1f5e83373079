"""A grammar process as the engine sees it, and the constraints that it keeps the state of."""

import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from container.engine.sequence import Constraint, Mask
from container.errors import ServingError
from container.grammar.protocol import (
    Advance,
    Advanced,
    Copy,
    Drop,
    Extend,
    Failed,
    FromProcess,
    NextMask,
    ToProcess,
    encode,
)

# Tokens in one message to a process that takes over from another.
TOKENS_A_MESSAGE = 8192
# Deaths of its process, by no fault of its grammar, that a sequence survives.
MAX_DEATHS = 1


class ProcessConstraint:
    """The state of one sequence in a grammar process; implements the engine's Constraint."""

    def __init__(self, process: "GrammarProcess", number: int, mask: bytes | None) -> None:
        self._process = process
        self.number = number
        self.mask = mask
        self.token_ids: list[int] = []
        self.num_deaths = 0  # of its process
        self.is_complete = False
        self.is_advanced = True
        self.error: ServingError | None = None

    @property
    def is_ready(self) -> bool:
        """Whether its next bitmask is here, or will never be."""
        return self.mask is not None or self.is_complete or self.error is not None

    def fill(self, mask: Mask) -> None:
        """Write the bitmask of the allowed next tokens."""
        assert self.mask is not None, "a bitmask before it is ready"
        words = np.frombuffer(self.mask, np.int32)
        mask[: len(words)] = words[: len(mask)]

    def accept(self, token_id: int) -> None:
        """Send a token to the process, whose answers set `is_advanced`, then `is_ready`."""
        if self.error is None:
            self.mask, self.is_advanced = None, False
            self.token_ids.append(token_id)
            self._process.advance(self)

    def copy(self) -> Constraint:
        """Return a constraint in the same state for another sequence."""
        return self._process.open(self)

    def close(self) -> None:
        """Forget the state; the process goes on compiling only for others."""
        self._process.close(self)

    def fail(self, error: ServingError) -> None:
        """End it with an error."""
        self.error, self.is_advanced = error, True


class GrammarProcess:
    """A grammar process and all constraints in it. An idle process has none."""

    def __init__(self, text: str, on_idle: "Callable[[GrammarProcess], None]") -> None:
        self.text = text
        self.channel: socket.socket | None = None  # None until it is started
        self.first_mask: bytes | None = None
        self.num_starts = 0
        self.server_pid = 0  # of the fork server that it was asked of
        self.exit_code: int | None = None  # see container.grammar.protocol.Ended
        self.is_started = False
        self.has_ended = False
        self.constraints: dict[int, ProcessConstraint] = {}
        # The constraints that await answers, oldest first; 0 while it is started and compiles.
        self._pending: deque[int] = deque()
        self._timeout_s = 0.0  # until the next of the pending answers; see start_deadline
        self._deadline = 0.0
        self._outgoing: deque[bytes] = deque()  # messages that the channel has no room for yet
        self._on_idle = on_idle
        self._last_number = 0

    @property
    def is_compiling(self) -> bool:
        """Whether its grammar has not compiled yet."""
        return self.channel is not None and self.first_mask is None and not self.has_ended

    def open(self, source: ProcessConstraint | None = None) -> ProcessConstraint:
        """Create a constraint at the grammar's start, or in the state of another."""
        self._last_number += 1
        mask = self.first_mask if source is None else source.mask
        constraint = ProcessConstraint(self, self._last_number, mask)
        self.constraints[constraint.number] = constraint
        if source is not None:
            constraint.token_ids = [*source.token_ids]
        if self.first_mask is not None:
            self._send(Copy(constraint.number, 0 if source is None else source.number))
        return constraint

    def close(self, constraint: ProcessConstraint) -> None:
        """Forget a constraint."""
        if self.constraints.pop(constraint.number, None) is None:
            return
        if self.first_mask is not None:
            self._send(Drop(constraint.number))
        if not self.constraints:
            self._on_idle(self)

    def advance(self, constraint: ProcessConstraint) -> None:
        """Have the process follow a constraint's last token, and note that it must answer.

        A process that is started again gets the token with all others, once it has compiled.
        """
        if self.first_mask is None:
            return
        if not self._pending:
            self._extend_deadline()
        self._pending.append(constraint.number)
        self._send(Advance(constraint.number, constraint.token_ids[-1]))

    def start_again(self) -> None:
        """Give up the process that has died or hangs, for another with the same constraints."""
        assert self.channel is not None
        self.channel.close()
        self.channel = self.first_mask = self.exit_code = None
        self.is_started = False
        self._pending.clear()
        self._outgoing.clear()

    def start_deadline(self, timeout_s: float) -> None:
        """Start a time limit, for this start and then for each answer."""
        self._timeout_s = timeout_s
        self._pending = deque([0])
        self._extend_deadline()

    def is_overdue(self, now: float) -> bool:
        """Return whether the next of its pending answers is late."""
        return bool(self._pending) and self._deadline < now

    def flush(self) -> None:
        """Send messages until the channel is full; never wait for a process that is stopped."""
        while self._outgoing and self.channel is not None:
            try:
                self.channel.send(self._outgoing[0], socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # it has died, which the next `wait` reads
                self._outgoing.clear()
                return
            self._outgoing.popleft()

    def take(self, message: FromProcess) -> None:
        """Process an answer, and allow the next one its time.

        Not from the token on: the process waits for the engine to read, which has long steps.
        """
        self._extend_deadline()
        match message:
            case Advanced(number, is_complete):
                constraint = self._latest(number)
                if constraint is not None:
                    constraint.is_complete, constraint.is_advanced = is_complete, True
                if is_complete:
                    self._is_done(number)
            case NextMask(0, mask):
                self._is_done(0)
                self.first_mask = mask
                for constraint in self.constraints.values():
                    self._begin(constraint, mask)
            case NextMask(number, mask):
                constraint = self._latest(number)
                if constraint is not None:
                    constraint.mask = mask
                self._is_done(number)
            case Failed(number, error):
                self._pending = deque(n for n in self._pending if n != number)
                constraint = self.constraints.get(number)
                if constraint is not None:
                    constraint.fail(error.to_error())

    def fail_all(self, error: ServingError) -> None:
        """End every constraint with an error; the process is of no more use."""
        self.has_ended = True
        if self.channel is not None:
            self.channel.close()
        self._fail(self.constraints.values(), error)

    def count_death(self, error: ServingError) -> bool:
        """Fail the constraints whose process has died before; return whether any other is left."""
        for constraint in self.constraints.values():
            constraint.num_deaths += 1
        self._fail((c for c in self.constraints.values() if c.num_deaths > MAX_DEATHS), error)
        return any(constraint.error is None for constraint in self.constraints.values())

    def _fail(self, constraints: Iterable[ProcessConstraint], error: ServingError) -> None:
        for constraint in constraints:
            if constraint.error is None:
                constraint.fail(error)

    def _begin(self, constraint: ProcessConstraint, first_mask: bytes) -> None:
        """Bring a constraint to where it is in a process that has just compiled the grammar."""
        if constraint.error is not None:
            return
        self._send(Copy(constraint.number, 0))
        if not constraint.token_ids:
            constraint.mask = first_mask
            return
        for start in range(0, len(constraint.token_ids) - 1, TOKENS_A_MESSAGE):
            part = constraint.token_ids[start : len(constraint.token_ids) - 1]
            self._send(Extend(constraint.number, part[:TOKENS_A_MESSAGE]))
        self.advance(constraint)

    def _send(self, message: ToProcess) -> None:
        assert self.channel is not None, "a message before the process has compiled"
        self._outgoing.append(encode(message))
        self.flush()

    def _extend_deadline(self) -> None:
        self._deadline = time.monotonic() + self._timeout_s

    def _latest(self, number: int) -> ProcessConstraint | None:
        """Return the constraint that an answer is for, unless a later token waits for its own."""
        if self._pending.count(number) > 1:
            return None
        return self.constraints.get(number)

    def _is_done(self, number: int) -> None:
        with contextlib.suppress(ValueError):
            self._pending.remove(number)
