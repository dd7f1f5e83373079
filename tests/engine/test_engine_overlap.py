"""Steps that begin before the last one is read: the same tokens with any event in between."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container.engine.engine import Engine
from container.messages.engine import FinishReason, SamplingParams, Submit, TokenEvent
from tests.support.engines import Job, OverlappingRunner, ScriptedRunner, engine_config, ids, run

END = 9


def engine_of(runner: ScriptedRunner | OverlappingRunner, **sizes: int) -> Engine:
    return Engine(runner, engine_config(**sizes), end_token_ids=(END,))


jobs = st.lists(
    st.builds(
        lambda length, new, step, first: Job(
            [first] * length, SamplingParams(max_new_tokens=new), step
        ),
        st.integers(1, 40),
        st.integers(1, 30),
        st.integers(0, 20),
        st.integers(2, 5),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(jobs=jobs, num_blocks=st.integers(18, 60), batch=st.integers(4, 40))
def test_tokens_are_those_of_steps_one_after_another(
    jobs: list[Job], num_blocks: int, batch: int
) -> None:
    sizes = {"num_blocks": num_blocks, "max_batch_tokens": batch, "max_total_tokens": 72}
    sizes["max_input_tokens"] = 71
    alone = run(engine_of(ScriptedRunner(), **sizes), jobs)
    engine = engine_of(OverlappingRunner(), **sizes)
    overlapping = run(engine, jobs)
    for index in range(len(jobs)):
        assert ids(overlapping[index]) == ids(alone[index])
        assert overlapping[index][-1].finish_reason is alone[index][-1].finish_reason
    assert engine.load.blocks_used == 0


def test_a_step_is_read_after_the_next_one_has_begun() -> None:
    runner = OverlappingRunner()
    engine = engine_of(runner)
    engine.submit(b"f", Submit(0, [3, 4], SamplingParams(max_new_tokens=4)))
    events_of_step = []
    while engine.has_work:
        events_of_step.append((len(engine.step()), runner.unread))
    # Nothing to read at first; nothing to begin at last.
    assert events_of_step == [(0, 1), (1, 1), (1, 1), (1, 1), (1, 0)]


def test_a_stale_row_of_a_finished_sequence_is_dropped() -> None:
    engine = engine_of(OverlappingRunner(period=8))  # samples END at index 7
    engine.submit(b"f", Submit(0, [3] * 4, SamplingParams(max_new_tokens=30)))
    engine.submit(b"f", Submit(1, [3] * 5, SamplingParams(max_new_tokens=30)))
    events: list[TokenEvent] = []
    while engine.has_work:
        events += [event for _, event in engine.step()]
        engine.scheduler.check_invariants()
    tokens = {
        request: [e.token_id for e in events if e.request_id == request] for request in (0, 1)
    }
    assert tokens == {0: [6, 7, 8, 9], 1: [7, 8, 9]}


@pytest.mark.parametrize("seed", range(4))
def test_aborts_between_two_steps_free_every_block(seed: int) -> None:
    rnd = random.Random(seed)
    engine = engine_of(OverlappingRunner(), num_blocks=30, max_total_tokens=100, max_running=6)
    alive: set[int] = set()
    for step in range(200):
        if step < 150 and len(alive) < 10:
            prompt = [rnd.randrange(2, 5)] * rnd.randint(1, 30)
            params = SamplingParams(max_new_tokens=rnd.randint(1, 30))
            engine.submit(b"f", Submit(step, prompt, params))
            alive.add(step)
        for _, event in engine.step():
            assert event.request_id in alive, "a token of a request that is gone"
            if event.finish_reason is not None:
                alive.discard(event.request_id)
        engine.scheduler.check_invariants()
        if alive and rnd.random() < 0.2:
            victim = rnd.choice(sorted(alive))
            engine.abort(b"f", victim)
            alive.discard(victim)
            engine.scheduler.check_invariants()
    while engine.has_work:
        engine.step()
    assert engine.load.blocks_used == 0


def test_drafts_and_overlap_exclude_each_other() -> None:
    runner = OverlappingRunner(period=3)
    engine = engine_of(runner, speculate=4)
    engine.submit(b"f", Submit(0, [2, 3, 4] * 5, SamplingParams(max_new_tokens=20)))
    while engine.has_work:
        engine.step()
        assert runner.unread == 0
    assert engine.load.accepted_tokens > 0


def test_tokens_read_before_a_failed_step_are_sent() -> None:
    runner = OverlappingRunner()
    engine = engine_of(runner)
    engine.submit(b"f", Submit(0, [3] * 10, SamplingParams(max_new_tokens=2)))
    engine.submit(b"f", Submit(1, [3] * 10, SamplingParams(max_new_tokens=20)))
    engine.step()
    engine.step()
    runner.fails_to_sample = True
    with pytest.raises(RuntimeError, match="injected"):
        engine.step()  # reads the last token of request 0, then fails
    runner.fails_to_sample = False
    runner.unread = 0
    assert engine.abort_all() == [(b"f", 1)]
    engine.run_self_test()
    assert engine.has_work
    events_of_step = [event for _, event in engine.step()]
    assert [(one.request_id, one.finish_reason) for one in events_of_step] == [
        (0, FinishReason.LENGTH)
    ]
    assert not engine.has_work
    steps = engine.load.steps
    failed = steps.decode.begun - steps.decode.done + steps.prefill.begun - steps.prefill.done
    assert failed == 1


def test_an_idle_engine_has_no_step_unread() -> None:
    runner = OverlappingRunner(period=8)
    engine = engine_of(runner)
    engine.submit(b"f", Submit(0, [3] * 4, SamplingParams(max_new_tokens=30)))  # ends by END
    while engine.has_work:
        engine.step()
    assert runner.unread == 0
    engine.submit(b"f", Submit(1, [3] * 4, SamplingParams(max_new_tokens=30)))
    engine.step()
    engine.abort(b"f", 1)
    while engine.has_work:
        engine.step()
    assert runner.unread == 0


def test_durations_of_overlapping_steps_add_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    runner = OverlappingRunner()
    engine = engine_of(runner)
    engine.submit(b"f", Submit(0, [3], SamplingParams(max_new_tokens=5)))
    while engine.has_work:
        now += 0.5
        engine.step()
    steps = engine.load.steps
    total = steps.decode.step_seconds.total + steps.prefill.step_seconds.total
    assert steps.decode.done + steps.prefill.done == 5
    assert total == pytest.approx(now - 0.5)  # the first one began after half a second


def test_a_sequence_with_its_last_token_pending_is_not_preempted() -> None:
    engine = engine_of(OverlappingRunner(), num_blocks=6, max_total_tokens=24, max_input_tokens=20)
    engine.submit(b"f", Submit(0, [3] * 11, SamplingParams(max_new_tokens=12)))
    engine.submit(b"f", Submit(1, [3] * 11, SamplingParams(max_new_tokens=2)))
    done = []
    while engine.has_work:
        done += [event.request_id for _, event in engine.step() if event.finish_reason]
        engine.scheduler.check_invariants()
    assert done == [1, 0]
    assert engine.load.preemptions == 0
