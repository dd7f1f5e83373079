"""Structured output in the engine: which requests wait for their grammar, and for how long.

A grammar compiles in a separate process, and its bitmasks are computed there, alongside the steps.
No step waits for one longer than a few milliseconds: a sequence whose bitmask is late is
deferred, and so is a token until it is known whether the grammar ends with it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from container.engine.model_runner import Sampled
from container.engine.schedule import Batch
from container.engine.scheduler import NewToken, Scheduler
from container.engine.sequence import Constraint, Sequence
from container.errors import ServingError, UnsupportedParameter
from container.messages.engine import FinishReason

# How long a step waits for bitmasks, and for what its tokens did to their grammars.
STEP_WAIT_S = 0.005
# How long a round of the engine waits where there is nothing but grammars to wait for.
IDLE_WAIT_S = 0.005


class Grammars(Protocol):
    """Compiles grammars; container.grammar implements it."""

    def compile(self, grammar: str) -> Constraint:
        """Return a constraint that is ready once its grammar has compiled, or has an error."""
        ...

    def wait(self, is_done: Callable[[], bool], timeout_s: float) -> None:
        """Read answers until `is_done`, or the time is up. Reads once in any case."""
        ...


@dataclass(frozen=True, slots=True)
class _Compiling:
    """A request whose grammar compiles."""

    constraint: Constraint
    sequences: list[Sequence]


class StructuredOutput:
    """Owns the constraints of all sequences, and the deferred tokens."""

    def __init__(self, grammars: Grammars | None, scheduler: Scheduler) -> None:
        self._grammars = grammars
        self._scheduler = scheduler
        self._compiling: list[_Compiling] = []
        self._deferred_tokens: list[tuple[Sequence, Sampled]] = []
        self._failures: list[tuple[Sequence, ServingError]] = []

    def check_offered(self, grammar: str) -> None:
        """Raise UnsupportedParameter for a grammar where the tokenizer allows none."""
        if grammar and self._grammars is None:
            raise UnsupportedParameter("grammar is not supported by this model's tokenizer")

    def compile(self, grammar: str, sequences: list[Sequence]) -> None:
        """Compile the grammar of a request; its sequences are queued by a later `read`."""
        assert self._grammars is not None
        self._compiling.append(_Compiling(self._grammars.compile(grammar), sequences))

    def read(self, *, waits: bool) -> list[NewToken]:
        """Process all answers; return the deferred tokens that can now be sent.

        `waits`: there is nothing else to do.
        """
        if self._grammars is None or not self._has_any():
            return []
        is_any_ready = self._is_any_ready if waits else _always
        self._grammars.wait(is_any_ready, IDLE_WAIT_S if waits else 0.0)
        self._queue_compiled()
        deferred, self._deferred_tokens = self._deferred_tokens, []
        new_tokens = self._resolve_all([(s, token, s.finish_reason) for s, token in deferred])
        for sequence in self._constrained():
            if sequence.is_deferred:
                self._release(sequence)
        return new_tokens

    def resolve(self, new_tokens: list[NewToken]) -> list[NewToken]:
        """Find the tokens with which their grammars end, and return what can be sent.

        A token whose grammar is late or has failed is left out.
        """
        if self._grammars is None:
            return new_tokens
        constraints = [
            sequence.constraint
            for sequence, _, reason in new_tokens
            if sequence.constraint is not None and reason in (None, FinishReason.LENGTH)
        ]
        if not constraints:
            return new_tokens
        if not all(constraint.is_advanced for constraint in constraints):
            self._grammars.wait(lambda: all(c.is_advanced for c in constraints), STEP_WAIT_S)
        return self._resolve_all(new_tokens)

    def defer_late(self) -> None:
        """Defer all running sequences whose bitmask is late."""
        self._wait_ready(self._constrained())

    def without_late(self, batch: Batch) -> Batch:
        """Return the batch without the items that would sample, but whose bitmask is late."""
        sequences = [
            item.sequence
            for item in batch.items
            if item.samples and not item.is_stale and item.sequence.constraint is not None
        ]
        if not self._wait_ready(sequences):
            return batch
        items = (item for item in batch.items if not (item.samples and item.sequence.is_deferred))
        return replace(batch, items=tuple(items))

    def take_failures(self) -> list[tuple[Sequence, ServingError]]:
        """Return and clear the sequences whose grammar has failed."""
        failures, self._failures = self._failures, []
        return failures

    def drop_token(self, sequence: Sequence) -> None:
        """Drop the deferred token of an aborted sequence, if there is one."""
        sequence.is_deferred = False
        self._deferred_tokens = [entry for entry in self._deferred_tokens if entry[0] != sequence]

    def forget(self, sequences: list[Sequence]) -> None:
        """Release the constraints of a request that has ended; cancel its compile."""
        for entry in [entry for entry in self._compiling if entry.sequences[0] in sequences]:
            entry.constraint.close()
            self._compiling.remove(entry)
        for sequence in sequences:
            self.drop_token(sequence)
            if sequence.constraint is not None:
                sequence.constraint.close()

    def _has_any(self) -> bool:
        return bool(self._compiling or self._deferred_tokens or self._constrained())

    def _constrained(self) -> list[Sequence]:
        return [sequence for sequence in self._scheduler.running if sequence.constraint is not None]

    def _is_any_ready(self) -> bool:
        is_compiled = any(entry.constraint.is_ready for entry in self._compiling)
        return is_compiled or any(c.is_ready for c in _constraints(self._constrained()))

    def _queue_compiled(self) -> None:
        """Queue the requests whose grammar has compiled, and fail those whose grammar has not."""
        for entry in [entry for entry in self._compiling if entry.constraint.is_ready]:
            self._compiling.remove(entry)
            if entry.constraint.error is not None:
                self._failures.append((entry.sequences[0], entry.constraint.error))
                continue
            for sequence in entry.sequences:
                if sequence.finish_reason is None:  # others were aborted meanwhile
                    sequence.constraint = entry.constraint.copy()
                    self._scheduler.add(sequence)
            entry.constraint.close()

    def _resolve_all(self, new_tokens: list[NewToken]) -> list[NewToken]:
        return [token for token in map(self._resolve, new_tokens) if token is not None]

    def _resolve(self, new_token: NewToken) -> NewToken | None:
        sequence, token, reason = new_token
        constraint = sequence.constraint
        if constraint is None or reason not in (None, FinishReason.LENGTH):
            return new_token
        if not constraint.is_advanced:
            sequence.is_deferred = True
            self._deferred_tokens.append((sequence, token))
            return None
        sequence.is_deferred = constraint.error is not None  # until its request has failed
        if constraint.error is not None:
            self._failures.append((sequence, constraint.error))
            return None
        if not constraint.is_complete:
            return new_token
        if reason is None:
            self._scheduler.remove(sequence, FinishReason.END_TOKEN)
        sequence.finish_reason = FinishReason.END_TOKEN
        return sequence, token, FinishReason.END_TOKEN

    def _wait_ready(self, sequences: list[Sequence]) -> bool:
        """Wait a moment for bitmasks; defer the late sequences. Return whether any is late."""
        constraints = _constraints(sequences)
        if self._grammars is None or all(constraint.is_ready for constraint in constraints):
            is_late = False
        else:
            self._grammars.wait(lambda: all(c.is_ready for c in constraints), STEP_WAIT_S)
            is_late = not all(constraint.is_ready for constraint in constraints)
        for sequence in sequences:
            self._release(sequence)
        return is_late or any(sequence.is_deferred for sequence in sequences)

    def _release(self, sequence: Sequence) -> None:
        """Defer a sequence as long as its bitmask or its last token is late; record its failure."""
        constraint = sequence.constraint
        assert constraint is not None
        if constraint.error is not None:
            self._failures.append((sequence, constraint.error))
        is_late = not constraint.is_ready or any(s is sequence for s, _ in self._deferred_tokens)
        sequence.is_deferred = is_late or constraint.error is not None


def _constraints(sequences: list[Sequence]) -> list[Constraint]:
    return [s.constraint for s in sequences if s.constraint is not None]


def _always() -> bool:
    return True
