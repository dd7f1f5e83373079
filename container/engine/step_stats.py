"""Per-step statistics (counts, durations, batch sizes) reported in the engine's status."""

import time
from bisect import bisect_left
from dataclasses import dataclass

from container.engine.schedule import Batch
from container.messages.engine import BATCH_SIZES, STEP_SECONDS, Distribution, StepStats, StepTotals


class Histogram:
    """Counts values into buckets with these upper bounds; the last bucket has no bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def read(self) -> Distribution:
        """Return the counts so far."""
        return Distribution(list(self._counts), self._total)


class _PhaseRecorder:
    def __init__(self) -> None:
        self.open = 0
        self.done = 0
        self.failed = 0
        self.step_seconds = Histogram(STEP_SECONDS)
        self.forward_seconds = Histogram(STEP_SECONDS)

    def read(self) -> StepTotals:
        # A step counts when it has ended, not while it runs.
        ended = self.done + self.failed
        return StepTotals(ended, self.done, self.step_seconds.read(), self.forward_seconds.read())


@dataclass(frozen=True, slots=True)
class ActiveStep:
    """A step that has begun and not ended."""

    kind: _PhaseRecorder
    begun_at: float


class StepRecorder:
    """Records each step. A step with any prefill chunk counts as a prefill, others as a decode."""

    def __init__(self) -> None:
        self._prefill, self._decode = _PhaseRecorder(), _PhaseRecorder()
        self._sizes = Histogram(BATCH_SIZES)
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._read_at = self._started_at = 0.0

    def begin(self, batch: Batch) -> ActiveStep:
        """Record that a scheduled step is about to run."""
        decoded = sum(item.is_decode for item in batch.items)
        self._decode_tokens += decoded
        self._prefill_tokens += sum(item.num_tokens for item in batch.items) - decoded
        kind = self._decode if decoded == len(batch.items) else self._prefill
        kind.open += 1
        self._sizes.add(len(batch.items))
        return ActiveStep(kind, time.monotonic())

    def tokens_are_read(self, step: ActiveStep) -> None:
        """Record that a step's output has been read."""
        self._read_at, last = time.monotonic(), self._read_at
        # With overlap it began while the previous step ran; its time counts from that step's read.
        self._started_at = max(step.begun_at, last)
        step.kind.forward_seconds.add(self._read_at - self._started_at)

    def end(self, step: ActiveStep) -> None:
        """Record that a step has ended."""
        step.kind.open -= 1
        step.kind.done += 1
        step.kind.step_seconds.add(time.monotonic() - self._started_at)

    def fail(self) -> None:
        """Record that all active steps have failed."""
        for kind in (self._prefill, self._decode):
            kind.failed += kind.open
            kind.open = 0

    def read(self) -> StepStats:
        """Return all statistics since the start."""
        return StepStats(
            self._prefill.read(),
            self._decode.read(),
            self._sizes.read(),
            self._prefill_tokens,
            self._decode_tokens,
        )
