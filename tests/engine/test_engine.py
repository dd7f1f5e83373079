import random

import pytest

from container.engine.config import EngineConfig
from container.engine.engine import Engine
from container.engine.scheduler import MAX_PROMPT_LOGPROBS
from container.errors import InvalidParameter, Overloaded, PromptTooLong
from container.messages.engine import FinishReason, SamplingParams, Submit
from tests.support.engines import Job, ScriptedRunner, engine_config, ids, run

END = 50


def _engine(**sizes: int) -> Engine:
    return Engine(ScriptedRunner(), engine_config(**sizes), end_token_ids=[END])


def _submit(
    engine: Engine, request_id: int, length: int, new: int = 5, frontend_id: bytes = b"a"
) -> None:
    prompt = [request_id + 60] * length
    engine.submit(frontend_id, Submit(request_id, prompt, SamplingParams(max_new_tokens=new)))


def _step(engine: Engine) -> list[int]:
    events = engine.step()
    engine.scheduler.check_invariants()
    return [event.request_id for _, event in events]


def test_max_new_tokens_ends_with_length() -> None:
    events = run(_engine(), [Job([1] * 3, SamplingParams(max_new_tokens=4))])[0]
    assert [event.finish_reason for event in events] == [None, None, None, FinishReason.LENGTH]


def test_the_end_token_ends_the_sequence() -> None:
    events = run(_engine(), [Job([1] * 45, SamplingParams(max_new_tokens=40))])[0]
    assert ids(events) == [47, 48, 49, 50]
    assert events[-1].finish_reason is FinishReason.END_TOKEN


def test_only_the_first_event_has_prompt_details() -> None:
    events = run(_engine(), [Job([1], SamplingParams(max_new_tokens=3))])[0]
    assert events[0].prompt is not None
    assert [event.prompt for event in events[1:]] == [None, None]


def test_a_long_prompt_is_computed_in_chunks_beside_decodes() -> None:
    engine = _engine(max_batch_tokens=8)
    _submit(engine, 1, 4, new=20)
    _step(engine)
    _submit(engine, 2, 30)
    steps = [_step(engine) for _ in range(5)]
    assert all(1 in step for step in steps), "the running sequence must not wait for the prompt"
    assert [2 in step for step in steps] == [False, False, False, False, True]


def test_the_token_budget_is_never_exceeded() -> None:
    runner = ScriptedRunner()
    engine = Engine(runner, engine_config(max_batch_tokens=10), end_token_ids=[])
    run(engine, [Job([1] * 23, SamplingParams(max_new_tokens=9)) for _ in range(12)])
    assert max(batch.num_tokens for batch in runner.batches) == 10


def test_requests_are_started_in_the_order_they_came() -> None:
    engine = _engine(max_running=1)
    for request_id in (1, 2, 3):
        _submit(engine, request_id, 4, new=1)
    assert [_step(engine) for _ in range(3)] == [[1], [2], [3]]


def test_a_preempted_sequence_stays_first_in_the_queue() -> None:
    engine = _engine(num_blocks=6, block_size=4, max_total_tokens=24, max_input_tokens=20)
    _submit(engine, 1, 10, new=12)
    _submit(engine, 2, 10, new=12)
    _submit(engine, 3, 2, new=2)
    order: list[int] = []
    while engine.has_work:
        order += _step(engine)
    assert engine.load.preemptions > 0
    last_of = {request_id: len(order) - order[::-1].index(request_id) for request_id in (1, 2, 3)}
    assert last_of[1] < last_of[2]
    assert order.count(1) == order.count(2) == 12


def test_random_arrivals_and_aborts_finish_under_pressure() -> None:
    rnd = random.Random(5)
    engine = _engine(num_blocks=12, max_total_tokens=48, max_input_tokens=40, max_batch_tokens=9)
    alive: set[int] = set()
    for request_id in range(200):
        _submit(engine, request_id, rnd.randint(1, 40), new=rnd.randint(1, 8))
        alive.add(request_id)
        for _ in range(rnd.randint(0, 6)):
            _step(engine)
        if rnd.random() < 0.2:
            engine.abort(b"a", rnd.choice(sorted(alive)))
            engine.scheduler.check_invariants()
        while len(engine.scheduler) > 20:
            _step(engine)
    steps = 0
    while engine.has_work:
        _step(engine)
        steps += 1
        assert steps < 5000
    assert engine.load.blocks_used == 0


def test_abort_frees_the_blocks_at_once() -> None:
    engine = _engine()
    _submit(engine, 1, 20)
    _step(engine)
    assert engine.load.blocks_used > 0
    engine.abort(b"a", 1)
    assert engine.load.blocks_used == 0
    assert not engine.has_work


def test_abort_of_an_unknown_request_does_nothing() -> None:
    _engine().abort(b"a", 77)


def test_a_lost_frontend_takes_only_its_own_requests() -> None:
    engine = _engine()
    _submit(engine, 1, 4, frontend_id=b"a")
    _submit(engine, 1, 4, frontend_id=b"b")
    assert engine.abort_all(b"a") == [(b"a", 1)]
    assert engine.has_work


def test_one_request_too_many_is_refused_with_the_limit() -> None:
    engine = Engine(
        ScriptedRunner(),
        EngineConfig(4, 64, 32, 8, max_input_tokens=200, max_total_tokens=240, max_requests=2),
        end_token_ids=[],
    )
    _submit(engine, 1, 4)
    _submit(engine, 2, 4)
    with pytest.raises(Overloaded, match="2 requests") as caught:
        _submit(engine, 3, 4)
    assert caught.value.retry_after_s


def test_batch_records_have_a_share_of_the_limit() -> None:
    limits = {"max_requests": 3, "max_batch_requests": 2}
    config = EngineConfig(4, 64, 32, 8, max_input_tokens=200, max_total_tokens=240, **limits)
    engine = Engine(ScriptedRunner(), config, end_token_ids=[])

    def submit(request_id: int, *, is_batch: bool) -> None:
        params = SamplingParams(max_new_tokens=5)
        engine.submit(b"a", Submit(request_id, [60] * 4, params, is_batch=is_batch))

    submit(1, is_batch=True)
    submit(2, is_batch=True)
    with pytest.raises(Overloaded):
        submit(3, is_batch=True)
    for request_id in (4, 5, 6):
        submit(request_id, is_batch=False)
    assert engine.load.requests == 3
    engine.abort(b"a", 1)
    for is_batch in (False, True):  # a record gets no place that a request could have
        with pytest.raises(Overloaded):
            submit(7, is_batch=is_batch)
    engine.abort_all()
    assert engine.load.requests == 0
    submit(8, is_batch=True)


@pytest.mark.parametrize(("length", "new"), [(201, 1), (200, 41)])
def test_a_request_that_can_never_fit_is_refused(length: int, new: int) -> None:
    with pytest.raises(PromptTooLong):
        _submit(_engine(), 1, length, new)


@pytest.mark.parametrize(("length", "new"), [(0, 1), (1, 0)])
def test_empty_requests_are_refused(length: int, new: int) -> None:
    with pytest.raises(InvalidParameter):
        _submit(_engine(), 1, length, new)


def test_ids_that_the_model_lacks_are_refused() -> None:
    config = engine_config(vocabulary=100)
    engine = Engine(ScriptedRunner(), config, end_token_ids=[])
    for bad in (100, -1):
        with pytest.raises(InvalidParameter):
            engine.submit(b"a", Submit(1, [5, bad], SamplingParams(1)))


def test_a_cache_smaller_than_the_longest_sequence_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="the KV cache holds only 8 tokens"):
        engine_config(num_blocks=2)


def _submit_n(engine: Engine, count: int, length: int = 10, new: int = 3) -> None:
    params = SamplingParams(max_new_tokens=new)
    engine.submit(b"a", Submit(1, list(range(60, 60 + length)), params, count))


def test_sequences_of_a_request_share_the_blocks_of_their_prompt() -> None:
    engine = _engine(max_batch_tokens=64)
    _submit_n(engine, 3, length=10)
    _step(engine)  # the first computes the prompt: 3 blocks of 4
    assert engine.load.blocks_used == 3
    _step(engine)  # the others take its 2 full blocks and compute the rest
    assert engine.load.blocks_used == 3 + 2 * 1
    assert engine.load.cached_tokens == 2 * 8


def test_a_request_is_forgotten_with_its_last_sequence() -> None:
    engine = _engine()
    _submit_n(engine, 4)
    observed: list[tuple[int, bool]] = []
    while engine.has_work:
        for _, event in engine.step():
            observed.append((event.seq_index, event.finish_reason is not None))
        engine.scheduler.check_invariants()
    assert sorted(observed) == sorted(
        [(i, last) for i in range(4) for last in (False, False, True)]
    )
    assert engine.load.blocks_used == 0


def test_one_sequence_of_a_request_can_be_aborted() -> None:
    engine = _engine()
    _submit_n(engine, 3, new=5)
    _step(engine)
    _step(engine)
    engine.abort(b"a", 1, seq_index=1)
    engine.scheduler.check_invariants()
    rest: set[int] = set()
    while engine.has_work:
        rest |= {event.seq_index for _, event in engine.step()}
    assert rest == {0, 2}


def test_followers_start_even_when_their_leader_is_aborted_first() -> None:
    engine = _engine(max_batch_tokens=4)
    _submit_n(engine, 2, length=20)
    _step(engine)
    engine.abort(b"a", 1, seq_index=0)
    events = []
    while engine.has_work:
        events += engine.step()
        engine.scheduler.check_invariants()
    assert [event.seq_index for _, event in events] == [1, 1, 1]


def test_a_prefix_is_computed_once() -> None:
    runner = ScriptedRunner()
    engine = Engine(runner, engine_config(), end_token_ids=[])
    params = SamplingParams(max_new_tokens=2)
    prefix = list(range(60, 80))
    first = run(engine, [Job([*prefix, 7], params)])[0]
    second = run(engine, [Job([*prefix, 8], params)])[0]
    assert first[0].prompt is not None
    assert second[0].prompt is not None
    assert (first[0].prompt.cached_tokens, second[0].prompt.cached_tokens) == (0, 20)
    assert runner.batches[-2].num_tokens == 1


def test_the_whole_prompt_is_never_taken_from_the_cache() -> None:
    engine = _engine()
    jobs = [Job(list(range(60, 68)), SamplingParams(max_new_tokens=1))]
    run(engine, jobs)
    again = run(engine, jobs)[0]
    assert again[0].prompt is not None
    assert again[0].prompt.cached_tokens == 4


def test_cached_blocks_are_evicted_oldest_first() -> None:
    engine = _engine(num_blocks=8, max_total_tokens=32, max_input_tokens=30)
    sampling_params = SamplingParams(max_new_tokens=1)
    run(engine, [Job([60] * 13, sampling_params)])  # 3 full blocks become cached
    run(engine, [Job([61] * 13, sampling_params)])
    run(engine, [Job([60] * 13, sampling_params)])  # used again, so [61] is the older one
    run(engine, [Job([62] * 17, sampling_params)])
    completion = run(engine, [Job([60] * 13, sampling_params)])[0]
    assert completion[0].prompt is not None
    assert completion[0].prompt.cached_tokens == 12


def test_shared_prefixes_groups_and_aborts_finish() -> None:
    rnd = random.Random(11)
    engine = _engine(num_blocks=14, max_total_tokens=48, max_input_tokens=40, max_batch_tokens=9)
    for request_id in range(150):
        prompt = [70 + rnd.randrange(2)] * rnd.randint(1, 38) + [rnd.randrange(100)]
        params = SamplingParams(max_new_tokens=rnd.randint(1, 8))
        engine.submit(b"a", Submit(request_id, prompt, params, rnd.randint(1, 3)))
        for _ in range(rnd.randint(0, 12)):
            _step(engine)
        if rnd.random() < 0.2:
            engine.abort(b"a", rnd.randrange(request_id + 1), rnd.choice([None, 0, 1]))
            engine.scheduler.check_invariants()
    steps = 0
    while engine.has_work:
        _step(engine)
        steps += 1
        assert steps < 5000
    assert engine.load.blocks_used == 0
    assert engine.load.cached_tokens > 0


def test_prompt_logprobs_are_limited_in_each_step() -> None:
    runner = ScriptedRunner()
    sizes = {"num_blocks": 600, "max_batch_tokens": 2000, "max_total_tokens": 900}
    engine = Engine(runner, engine_config(**sizes, max_input_tokens=890), end_token_ids=[])
    scored = SamplingParams(max_new_tokens=1, prompt_logprobs=True)
    for number, params in enumerate((scored, scored, SamplingParams(max_new_tokens=1))):
        engine.submit(b"f", Submit(number, [3 + number] * 600, params))
    while engine.has_work:
        engine.step()
        engine.scheduler.check_invariants()
    rows = [sum(item.num_prompt_logprobs for item in batch.items) for batch in runner.batches]
    assert max(rows) == MAX_PROMPT_LOGPROBS
    assert sum(rows) == 2 * 599
    assert (
        max(batch.num_tokens for batch in runner.batches) > MAX_PROMPT_LOGPROBS
    )  # others have no limit
