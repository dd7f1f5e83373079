"""The engine's side of grammars: compiled beside it, followed token by token."""

import random

from container.engine.engine import Engine
from container.errors import InvalidParameter
from container.messages.common import Abort
from container.messages.engine import FinishReason, SamplingParams, Submit, TokenEvent
from tests.support.engines import OverlappingRunner, ScriptedRunner, engine_config
from tests.support.grammars import ScriptedGrammars


def _engine(grammars: ScriptedGrammars | None = None) -> tuple[Engine, ScriptedGrammars]:
    grammars = grammars or ScriptedGrammars()
    engine = Engine(ScriptedRunner(), engine_config(), end_token_ids=(), grammars=grammars)
    return engine, grammars


def _submit(engine: Engine, request_id: int, grammar: str = "", sequences: int = 1) -> None:
    params = SamplingParams(max_new_tokens=20, grammar=grammar)
    engine.submit(b"test", Submit(request_id, [1, 2, 3], params, sequences))


def _run(engine: Engine) -> list[TokenEvent]:
    events = []
    for _ in range(1000):
        if not engine.has_scheduled:
            return events
        events += [event for _, event in engine.step()]
        engine.scheduler.check_invariants()
    raise AssertionError("no progress")


def test_a_compiling_grammar_delays_no_other_request() -> None:
    engine, grammars = _engine()
    _submit(engine, 1, grammar="ends 3")
    _submit(engine, 2)
    assert {event.request_id for event in _run(engine)} == {2}
    assert engine.has_work
    grammars.finish_one()
    engine.step()
    events = _run(engine)
    assert {event.request_id for event in events} == {1}
    assert not engine.has_work


def test_a_complete_grammar_ends_its_sequence() -> None:
    engine, grammars = _engine()
    _submit(engine, 1, grammar="ends 3", sequences=2)
    grammars.finish_one()
    events = _run_from_start(engine)
    for seq_index in (0, 1):
        own = [event for event in events if event.seq_index == seq_index]
        assert len(own) == 3
        assert own[-1].finish_reason is FinishReason.END_TOKEN
    assert engine.take_failures() == []


def test_a_grammar_that_does_not_compile_fails_its_request_only() -> None:
    engine, grammars = _engine()
    _submit(engine, 1, grammar="ends 3", sequences=2)
    _submit(engine, 2)
    grammars.finish_one(InvalidParameter("grammar is not valid"))
    assert {event.request_id for event in _run_from_start(engine)} == {2}
    [(frontend_id, request_id, error)] = engine.take_failures()
    assert (frontend_id, request_id) == (b"test", 1)
    assert isinstance(error, InvalidParameter)
    assert not engine.has_work


def test_a_grammar_that_fails_midway_fails_its_request_only() -> None:
    engine, grammars = _engine()
    _submit(engine, 1, grammar="fails 5", sequences=2)
    _submit(engine, 2)
    grammars.finish_one()
    events = _run_from_start(engine)
    assert len([event for event in events if event.request_id == 2]) == 20
    assert len([event for event in events if event.request_id == 1]) == 8
    [(_, request_id, error)] = engine.take_failures()
    assert request_id == 1
    assert isinstance(error, InvalidParameter)
    assert "too complex" in error.message
    assert engine.load.blocks_used == 0


def test_an_abort_during_compilation_forgets_the_request() -> None:
    engine, grammars = _engine()
    _submit(engine, 1, grammar="ends 3")
    engine.abort(b"test", Abort(1).request_id)
    assert not engine.has_work
    grammars.finish_one()
    assert engine.step() == []
    assert engine.take_failures() == []


def test_a_late_mask_delays_its_sequence_only() -> None:
    for seed in range(20):
        rnd = random.Random(seed)
        grammars = ScriptedGrammars(lambda rnd=rnd: rnd.random() < 0.3)
        runner = OverlappingRunner() if seed % 2 else ScriptedRunner()
        engine = Engine(runner, engine_config(), end_token_ids=(), grammars=grammars)
        _submit(engine, 1, grammar="ends 7", sequences=2)
        _submit(engine, 2)
        grammars.finish_one()
        events: list[TokenEvent] = []
        steps_of_free = 0
        while engine.has_work:
            events += [event for _, event in engine.step()]
            engine.scheduler.check_invariants()
            steps_of_free += len([e for e in events if e.request_id == 2]) < 20
        assert steps_of_free < 23, "the free request waited"
        for seq_index in (0, 1):
            own = [e for e in events if e.request_id == 1 and e.seq_index == seq_index]
            assert len(own) == 7
            assert [event.finish_reason for event in own[:-1]] == [None] * 6
            assert own[-1].finish_reason is FinishReason.END_TOKEN
        assert not grammars.constraints


def _run_from_start(engine: Engine) -> list[TokenEvent]:
    first = [event for _, event in engine.step()]
    return first + _run(engine)
