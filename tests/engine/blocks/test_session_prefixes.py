"""Prefixes that sticky sessions hold: they stay, and they give way."""

import time

from container.engine.engine import Engine
from container.messages.engine import SamplingParams
from tests.support.engines import Job, ScriptedRunner, engine_config, run

PROMPT = list(range(2, 42))


def _engine(num_blocks: int = 64) -> Engine:
    sizes = {"num_blocks": num_blocks, "max_total_tokens": 60, "max_input_tokens": 50}
    return Engine(ScriptedRunner(), engine_config(**sizes), end_token_ids=[])


def _job(prompt: list[int], session: str = "", session_s: float = 60.0) -> Job:
    return Job(prompt, SamplingParams(4), session=session, session_s=session_s)


def _flood(engine: Engine) -> None:
    """Use every block once, so that all blocks that are only cached are evicted."""
    for start in range(4):
        run(engine, [_job([50 + start] * 40) for _ in range(6)])
        run(engine, [_job([60 + start + i] * 50) for i in range(6)])


def test_a_pinned_prefix_outlives_other_prefixes() -> None:
    for session, is_kept in (("s", True), ("", False)):
        engine = _engine()
        run(engine, [_job(PROMPT, session)])
        _flood(engine)
        cached = run(engine, [_job(PROMPT)])[0][0].prompt.cached_tokens
        assert (cached > 0) is is_kept


def test_pinned_blocks_are_freed_before_a_request_waits() -> None:
    engine = _engine(num_blocks=15)
    run(engine, [_job(PROMPT, "s")])
    assert len(engine.scheduler.kv_cache.pinned) == 1
    events = run(engine, [_job([9] * 50)])
    assert len(events[0]) == 4
    assert len(engine.scheduler.kv_cache.pinned) == 0
    assert engine.scheduler.num_preemptions == 0


def test_a_session_pins_its_last_prefix_until_it_ends() -> None:
    engine = _engine()
    run(engine, [_job(PROMPT, "s")])
    run(engine, [_job([9] * 20, "s", session_s=0.05)])
    assert len(engine.scheduler.kv_cache.pinned) == 1
    assert engine.load.blocks_used == 5
    time.sleep(0.06)
    run(engine, [_job([8] * 5)])
    assert len(engine.scheduler.kv_cache.pinned) == 0
    assert engine.load.blocks_used == 0
