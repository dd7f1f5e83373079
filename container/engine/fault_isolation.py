"""Finds the requests that make steps fail, so that the rest of a failed batch goes on.

The requests of a failed batch are suspects. They run apart from all others, in groups: a group that
fails again is halved, until one request fails alone. A request is cleared by its next token. If
all are cleared and memory ran out, the batch was too large: the limits are lower for a while.
"""

import logging
import time
from collections.abc import Sequence as Items
from dataclasses import dataclass

from container.engine.schedule import Batch
from container.engine.scheduler import Scheduler
from container.engine.sequence import RequestKey

log = logging.getLogger(__name__)

LOWER_LIMITS_S = 300.0


@dataclass(frozen=True, slots=True)
class FailedStep:
    """The batches of a failed step: its own, and that of the step before if it was in flight."""

    batches: Items[Batch]
    ran_out_of_memory: bool

    @property
    def suspects(self) -> list[RequestKey]:
        """The unfinished requests in it."""
        sequences = [item.sequence for batch in self.batches for item in batch.items]
        keys = (sequence.key for sequence in sequences if sequence.finish_reason is None)
        return list(dict.fromkeys(keys))

    @property
    def num_sequences(self) -> int:
        """The sequences of its larger batch."""
        return max((len(batch.items) for batch in self.batches), default=0)

    @property
    def num_tokens(self) -> int:
        """The tokens of its larger batch."""
        return max((batch.num_tokens for batch in self.batches), default=0)


class FaultIsolation:
    """Owns the groups of suspects, of which the last one is on trial, and lowers the limits."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._groups: list[list[RequestKey]] = []
        self._first: FailedStep | None = None
        self._limits = (scheduler.max_running, scheduler.max_batch_tokens)
        self._restore_at: float | None = None

    @property
    def on_trial(self) -> frozenset[RequestKey] | None:
        """The requests that the next step may run; None: all of them."""
        return frozenset(self._groups[-1]) if self._groups else None

    def suspect(self, failed: FailedStep) -> RequestKey | None:
        """Record a failed step; return the request to blame, once one has failed alone.

        A request that failed alone has a second try, and more with fewer tokens a step if memory
        ran out.
        """
        suspects = failed.suspects
        was_on_trial = any(key in group for group in self._groups for key in suspects)
        self._groups = _without(self._groups, suspects)
        if not was_on_trial:
            self._first = failed
            self._groups.append(suspects)
        elif len(suspects) > 1:
            middle = len(suspects) // 2
            self._groups += [suspects[middle:], suspects[:middle]]
        elif failed.ran_out_of_memory and failed.num_tokens > failed.num_sequences:
            self._lower_limits(self._scheduler.max_running, failed.num_tokens // 2)
            self._groups.append(suspects)
        else:
            self._first = None  # a request was to blame, not the size of the batch
            return suspects[0]
        return None

    def clear(self, key: RequestKey) -> None:
        """Clear a suspect, which has its next token or has ended."""
        if not self._groups:
            return
        self._groups = _without(self._groups, [key])
        first = self._first
        if self._groups or first is None:
            return
        self._first = None
        if first.ran_out_of_memory and first.num_sequences > 1:
            tokens = max(first.num_sequences, first.num_tokens) // 2
            self._lower_limits(first.num_sequences // 2, tokens)

    def restore_limits(self) -> None:
        """Lift the lower limits when their time is up."""
        if self._restore_at is not None and time.monotonic() >= self._restore_at:
            self._scheduler.set_limits(*self._limits)
            self._restore_at = None
            log.info("engine: the limits of a batch are those of the settings again")

    def _lower_limits(self, max_running: int, max_batch_tokens: int) -> None:
        self._scheduler.set_limits(max_running, max_batch_tokens)
        self._restore_at = time.monotonic() + LOWER_LIMITS_S
        log.warning(
            "engine: memory ran out in a step, so for %.0f s a batch has at most %d sequences and "
            "%d tokens; lower MAX_BATCH_SIZE or MAX_BATCH_PREFILL_TOKENS if this repeats",
            LOWER_LIMITS_S, max_running, max_batch_tokens,
        )  # fmt: skip


def _without(groups: list[list[RequestKey]], keys: list[RequestKey]) -> list[list[RequestKey]]:
    remaining = [[key for key in group if key not in keys] for group in groups]
    return [group for group in remaining if group]
