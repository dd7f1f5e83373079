"""Measures what a step costs beside the model: schedule, apply, and the messages to the frontend.

.venv/bin/python -m benchmarks.engine_cost: a scripted model, 1 to 256 running sequences; then the
prefix cache's look-up for prompts of 1,000 to 64,000 tokens. Fast repetitions count, so that a
busy machine shows less.
"""

import random
import time
from collections import defaultdict

import numpy as np

from container.engine.adapters import NO_ADAPTER
from container.engine.blocks.block_pool import BlockPool
from container.engine.config import EngineConfig
from container.engine.engine import Engine
from container.engine.model_runner import Sampled, StepOutput, SyncModelRunner
from container.engine.schedule import Batch
from container.messages.common import encode
from container.messages.engine import SamplingParams, StepEvents, Submit, TokenEvent

RUNNING = (1, 8, 32, 64, 128, 256)
PROMPTS = (1_000, 4_000, 16_000, 64_000)
STEPS, PROMPT, BLOCK = 400, 200, 32


class FreeModel(SyncModelRunner):
    """A model that costs nothing: its time is subtracted from that of the step."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def run(self, batch: Batch) -> StepOutput:
        """Sample the same token for everyone; note the time that this takes."""
        start = time.perf_counter()
        output = StepOutput([Sampled(7) for item in batch.items if item.samples])
        self.spent_s += time.perf_counter() - start
        return output


def step_us(running: int) -> float:
    """Measure a step of `running` sequences without the model, in microseconds."""
    model = FreeModel()
    total = PROMPT + STEPS + 8
    config = EngineConfig(
        BLOCK, running * (total // BLOCK + 1), running * PROMPT, running, PROMPT, total, running
    )
    engine = Engine(model, config, end_token_ids=[])
    numbers = random.Random(0)
    for request in range(running):
        ids = [numbers.randrange(50_000) for _ in range(PROMPT)]
        engine.submit(b"frontend", Submit(request, ids, SamplingParams(max_new_tokens=STEPS)))
    engine.step()
    times = []
    for _ in range(STEPS - 2):
        model.spent_s = 0.0
        start = time.perf_counter()
        by_frontend: dict[bytes, list[TokenEvent]] = defaultdict(list)
        for frontend_id, event in engine.step():
            by_frontend[frontend_id].append(event)
        for events in by_frontend.values():
            encode(StepEvents(events))
        times.append(time.perf_counter() - start - model.spent_s)
    return float(np.percentile(times, 20)) * 1e6


def lookup_us(prompt: int) -> float:
    """The time to find a whole prompt in the prefix cache, in microseconds."""
    pool = BlockPool(prompt // BLOCK + 1, BLOCK)
    ids = list(range(prompt))
    table, name = pool.allocate(prompt // BLOCK), NO_ADAPTER
    for index, block in enumerate(table):
        name = pool.cache_full_block(block, name, ids[index * BLOCK : (index + 1) * BLOCK])
    times = []
    for _ in range(30):
        start = time.perf_counter()
        prefix = pool.find_prefix(ids)
        times.append(time.perf_counter() - start)
        assert len(prefix) == prompt // BLOCK
    return min(times) * 1e6


def main() -> None:
    """Print both tables and the straight line through the first."""
    costs = [min(step_us(running) for _ in range(3)) for running in RUNNING]
    slope, fixed = np.polyfit(RUNNING, costs, 1)
    print("running sequences, us a step, us a sequence")
    for running, cost in zip(RUNNING, costs, strict=True):
        print(f"{running:>5} {cost:>9.0f} {cost / running:>7.2f}")
    print(f"line: {fixed:.0f} us + {slope:.2f} us a sequence (bar: 50 + 5)")
    print("prompt tokens, us to find them all, us per 1,000")
    for prompt in PROMPTS:
        cost = lookup_us(prompt)
        print(f"{prompt:>6} {cost:>9.0f} {cost / prompt * 1000:>7.1f}")


if __name__ == "__main__":
    main()
