"""Requests that wait for their adapter."""

from concurrent.futures import Future
from typing import cast

from container.engine.adapters import Adapters
from container.engine.engine import Engine
from container.messages.engine import SamplingParams, Submit
from tests.support.engines import ScriptedRunner, engine_config


class _EndsWhileAsked(Future[None]):
    """Ends just after it was asked for the first time, as on another thread."""

    def done(self) -> bool:
        was_done = super().done()
        if not was_done:
            self.set_result(None)
        return was_done


class _OneAdapter:
    """An adapter whose load ends between two looks at it."""

    def __init__(self) -> None:
        self.load = _EndsWhileAsked()
        self.released: list[int] = []

    def acquire(self, name: str) -> int:
        return 1

    def loading(self, number: int) -> Future[None]:
        return self.load

    def release(self, number: int) -> None:
        self.released.append(number)

    def poll(self) -> None:
        pass


def test_a_load_that_ends_between_two_looks_loses_no_request() -> None:
    adapters = _OneAdapter()
    engine = Engine(
        ScriptedRunner(), engine_config(), end_token_ids=(), adapters=cast(Adapters, adapters)
    )
    engine.submit(b"", Submit(1, [1, 2, 3], SamplingParams(max_new_tokens=2), adapter="a"))
    events = [event for _ in range(5) for _, event in engine.step()]
    assert len(events) == 2
    assert adapters.released == [1]
    assert not engine.has_work
