"""What the engine's steps cost: counts, durations and sizes, as its status tells them."""

import time
from bisect import bisect_left

from container.engine.batch import Batch
from container.messages import (
    BATCH_SIZES,
    STEP_SECONDS,
    Distribution,
    StepStats,
    StepTotals,
)


class Tally:
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


class _Kind:
    def __init__(self) -> None:
        self.begun = 0
        self.done = 0
        self.step_seconds = Tally(STEP_SECONDS)
        self.forward_seconds = Tally(STEP_SECONDS)

    def read(self) -> StepTotals:
        return StepTotals(
            self.begun, self.done, self.step_seconds.read(), self.forward_seconds.read()
        )


class StepMeter:
    """Follows each step. A step with a part of a prompt in it is a prefill, any other a decode."""

    def __init__(self) -> None:
        self._prefill, self._decode = _Kind(), _Kind()
        self._sizes = Tally(BATCH_SIZES)
        self._kind = self._decode
        self._begun_at = 0.0
        self._prefill_tokens = 0
        self._decode_tokens = 0

    def begin(self, batch: Batch) -> None:
        """A planned step is about to run."""
        decoded = sum(item.is_decode for item in batch.items)
        self._decode_tokens += decoded
        self._prefill_tokens += sum(item.num_tokens for item in batch.items) - decoded
        self._kind = self._decode if decoded == len(batch.items) else self._prefill
        self._kind.begun += 1
        self._sizes.add(len(batch.items))
        self._begun_at = time.monotonic()

    def forward_is_done(self) -> None:
        """The model has run and tokens are sampled."""
        self._kind.forward_seconds.add(time.monotonic() - self._begun_at)

    def end(self) -> None:
        """The step is over."""
        self._kind.done += 1
        self._kind.step_seconds.add(time.monotonic() - self._begun_at)

    def read(self) -> StepStats:
        """All numbers since the start."""
        return StepStats(
            self._prefill.read(),
            self._decode.read(),
            self._sizes.read(),
            self._prefill_tokens,
            self._decode_tokens,
        )
