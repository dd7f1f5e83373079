"""Many requests of mixed lengths in far too little memory, with a scripted model."""

import random

import pytest

from container.engine.config import EngineConfig
from container.engine.engine import Engine
from container.messages.engine import SamplingParams, Submit
from tests.support.engines import ScriptedRunner

REQUESTS = 1000
BLOCK = 16


@pytest.mark.slow
def test_a_thousand_requests_finish_with_little_memory() -> None:
    rnd = random.Random(0)
    lengths = [(rnd.randint(1, 2000), rnd.randint(1, 500)) for _ in range(REQUESTS)]
    needed = sum(prompt + new for prompt, new in lengths)
    config = EngineConfig(
        BLOCK, needed // BLOCK // 10, max_batch_tokens=4096, max_running=512,
        max_input_tokens=2000, max_total_tokens=2500, max_requests=REQUESTS,
    )  # fmt: skip
    runner = ScriptedRunner()
    engine = Engine(runner, config, end_token_ids=[])
    for number, (prompt, new) in enumerate(lengths):
        ids = [rnd.randrange(100) for _ in range(prompt)]
        engine.submit(b"a", Submit(number, ids, SamplingParams(max_new_tokens=new)))
    got = [0] * REQUESTS
    steps = most_waiting = 0
    while engine.has_work:
        for _, event in engine.step():
            got[event.request_id] += 1
        runner.batches.clear()
        steps += 1
        assert steps < 20_000, "the engine makes no progress"
        load = engine.load
        most_waiting = max(most_waiting, load.waiting)
        assert load.blocks_used <= config.num_blocks
        assert load.blocks_cached <= config.num_blocks
        if steps % 50 == 0:
            engine.scheduler.check_invariants()
    engine.scheduler.check_invariants()
    assert got == [new for _, new in lengths]
    assert engine.load.blocks_used == 0
    assert engine.load.preemptions > 100
    assert most_waiting > REQUESTS // 2
