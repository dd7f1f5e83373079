"""The engine's side of grammars: compiled beside it, followed token by token."""

from concurrent.futures import Future

from container.engine.engine import Engine
from container.engine.structured_output import Constraint, Mask
from container.errors import GenerationFailed, InvalidParameter
from container.messages.common import Abort
from container.messages.engine import FinishReason, SamplingParams, Submit, TokenEvent
from tests.support.engines import ScriptedRunner, engine_config


class Countdown:
    """Complete after so many tokens; `fails_at` breaks it at that one."""

    def __init__(self, left: int, fails_at: int = 0) -> None:
        self.left = left
        self.fails_at = fails_at
        self.error = ""

    @property
    def is_complete(self) -> bool:
        return self.left == 0

    def fill(self, mask: Mask) -> None:
        mask[:] = -1

    def accept(self, token_id: int) -> None:
        if self.left == self.fails_at:
            self.error = "too complex"
        self.left -= 1

    def copy(self) -> "Countdown":
        return Countdown(self.left, self.fails_at)


class Compiler:
    """Leaves every grammar for the test to finish."""

    def __init__(self) -> None:
        self.futures: list[Future[Constraint]] = []

    def __call__(self, grammar: str) -> Future[Constraint]:
        self.futures.append(Future())
        return self.futures[-1]


def _engine() -> tuple[Engine, Compiler]:
    compiler = Compiler()
    engine = Engine(ScriptedRunner(), engine_config(), end_token_ids=(), compile_grammar=compiler)
    return engine, compiler


def _submit(engine: Engine, request_id: int, grammar: str = "", sequences: int = 1) -> None:
    params = SamplingParams(max_new_tokens=20, grammar=grammar)
    engine.submit(b"test", Submit(request_id, [1, 2, 3], params, sequences))


def _run(engine: Engine) -> list[TokenEvent]:
    events = []
    while engine.has_scheduled:
        events += [event for _, event in engine.step()]
        engine.scheduler.check_invariants()
    return events


def test_a_grammar_that_is_compiled_holds_up_nobody() -> None:
    engine, compiler = _engine()
    _submit(engine, 1, grammar="slow")
    _submit(engine, 2)
    assert {event.request_id for event in _run(engine)} == {2}
    assert engine.has_work
    compiler.futures[0].set_result(Countdown(3))
    engine.step()
    events = _run(engine)
    assert {event.request_id for event in events} == {1}
    assert not engine.has_work


def test_a_complete_grammar_ends_its_sequence() -> None:
    engine, compiler = _engine()
    _submit(engine, 1, grammar="three tokens", sequences=2)
    compiler.futures[0].set_result(Countdown(3))
    events = _run_from_start(engine)
    for seq_index in (0, 1):
        own = [event for event in events if event.seq_index == seq_index]
        assert len(own) == 3
        assert own[-1].finish_reason is FinishReason.END_TOKEN
    assert engine.take_failures() == []


def test_a_grammar_that_does_not_compile_fails_its_request_only() -> None:
    engine, compiler = _engine()
    _submit(engine, 1, grammar="bad", sequences=2)
    _submit(engine, 2)
    compiler.futures[0].set_exception(InvalidParameter("grammar is not valid"))
    assert {event.request_id for event in _run_from_start(engine)} == {2}
    [(frontend_id, request_id, error)] = engine.take_failures()
    assert (frontend_id, request_id) == (b"test", 1)
    assert isinstance(error, InvalidParameter)
    assert not engine.has_work


def test_a_grammar_that_breaks_on_the_way_fails_its_request_only() -> None:
    engine, compiler = _engine()
    _submit(engine, 1, grammar="breaks", sequences=2)
    _submit(engine, 2)
    compiler.futures[0].set_result(Countdown(9, fails_at=7))
    events = _run_from_start(engine)
    assert len([event for event in events if event.request_id == 2]) == 20
    assert len([event for event in events if event.request_id == 1]) == 4
    [(_, request_id, error)] = engine.take_failures()
    assert request_id == 1
    assert isinstance(error, GenerationFailed)
    assert "too complex" in error.message
    assert engine.load.blocks_used == 0


def test_a_request_aborted_while_its_grammar_is_compiled_is_forgotten() -> None:
    engine, compiler = _engine()
    _submit(engine, 1, grammar="slow")
    engine.abort(b"test", Abort(1).request_id)
    assert not engine.has_work
    compiler.futures[0].set_result(Countdown(3))
    assert engine.step() == []
    assert engine.take_failures() == []


def _run_from_start(engine: Engine) -> list[TokenEvent]:
    first = [event for _, event in engine.step()]
    return first + _run(engine)


def test_a_compiler_that_breaks_fails_its_request_only() -> None:
    engine, compiler = _engine()
    _submit(engine, 1, grammar="breaks")
    _submit(engine, 2)
    compiler.futures[0].set_exception(RuntimeError("a bug in a library"))
    assert {event.request_id for event in _run(engine)} == {2}
    ((_, request_id, error),) = engine.take_failures()
    assert (request_id, type(error)) == (1, GenerationFailed)
    assert "library" not in error.message
