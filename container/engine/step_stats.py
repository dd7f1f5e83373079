"""What the engine's steps cost: counts, durations and sizes, as its status tells them."""

import time
from bisect import bisect_left
from dataclasses import dataclass

from container.engine.schedule import Batch
from container.messages.engine import BATCH_SIZES, STEP_SECONDS, Distribution, StepStats, StepTotals


class Histogram:
    """Counts numbers into buckets with these upper bounds; the last bucket has none."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count one number."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def read(self) -> Distribution:
        """What was counted so far."""
        return Distribution(list(self._counts), self._total)


class _PhaseRecorder:
    def __init__(self) -> None:
        self.open = 0
        self.done = 0
        self.failed = 0
        self.step_seconds = Histogram(STEP_SECONDS)
        self.forward_seconds = Histogram(STEP_SECONDS)

    def read(self) -> StepTotals:
        # One that is under way counts when it is over.
        ended = self.done + self.failed
        return StepTotals(ended, self.done, self.step_seconds.read(), self.forward_seconds.read())


@dataclass(frozen=True, slots=True)
class ActiveStep:
    """A step that is not over."""

    kind: _PhaseRecorder
    begun_at: float


class StepRecorder:
    """Follows each step. A step with a part of a prompt in it is a prefill, any other a decode."""

    def __init__(self) -> None:
        self._prefill, self._decode = _PhaseRecorder(), _PhaseRecorder()
        self._sizes = Histogram(BATCH_SIZES)
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._read_at = self._started_at = 0.0

    def begin(self, batch: Batch) -> ActiveStep:
        """A planned step is about to run."""
        decoded = sum(item.is_decode for item in batch.items)
        self._decode_tokens += decoded
        self._prefill_tokens += sum(item.num_tokens for item in batch.items) - decoded
        kind = self._decode if decoded == len(batch.items) else self._prefill
        kind.open += 1
        self._sizes.add(len(batch.items))
        return ActiveStep(kind, time.monotonic())

    def tokens_are_read(self, step: ActiveStep) -> None:
        """The model has run and its tokens are known."""
        self._read_at, last = time.monotonic(), self._read_at
        # With overlap it was begun while the one before it ran; its own time began with that read.
        self._started_at = max(step.begun_at, last)
        step.kind.forward_seconds.add(self._read_at - self._started_at)

    def end(self, step: ActiveStep) -> None:
        """The step is over."""
        step.kind.open -= 1
        step.kind.done += 1
        step.kind.step_seconds.add(time.monotonic() - self._started_at)

    def fail(self) -> None:
        """The steps under way have failed."""
        for kind in (self._prefill, self._decode):
            kind.failed += kind.open
            kind.open = 0

    def read(self) -> StepStats:
        """All numbers since the start."""
        return StepStats(
            self._prefill.read(),
            self._decode.read(),
            self._sizes.read(),
            self._prefill_tokens,
            self._decode_tokens,
        )
