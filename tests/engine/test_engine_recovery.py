"""After a failed step: one token proves the engine, and only the requests to blame fail."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq

from container.engine.engine import Engine
from container.engine.model_runner import StepOutput
from container.engine.process import engine_server
from container.engine.schedule import Batch
from container.errors import Unavailable
from container.frontend.generation.service import Service
from container.ipc.backend_server import BackendServer
from container.messages.common import Hello, RequestFailed, encode
from container.messages.engine import (
    EngineInfo,
    SamplingParams,
    Status,
    StepEvents,
    Submit,
    to_frontend_decoder,
)
from tests.support.connections import NoEngine
from tests.support.engines import ScriptedRunner, engine_config

POISON = 99
INFO = EngineInfo("m", "/m", None, "tiny", "float32", "cpu", 100, 200, 240, 256, 32)


class FaultyRunner(ScriptedRunner):
    """Fails the steps of these numbers, and those with a prompt that begins with POISON."""

    def __init__(self, faults: set[int]) -> None:
        super().__init__()
        self.faults = faults
        self.max_tokens: int | None = None

    def run(self, batch: Batch) -> StepOutput:
        output = super().run(batch)
        if len(self.batches) in self.faults:
            raise RuntimeError("injected")
        if any(item.sequence.token_ids[0] == POISON for item in batch.items):
            raise RuntimeError("poisoned")
        if self.max_tokens is not None and batch.num_tokens > self.max_tokens:
            raise MemoryError("too many tokens")
        return output


class Setting:
    """A server in a thread with a frontend's socket to it."""

    def __init__(self, address: str, runner: FaultyRunner) -> None:
        self.runner = runner
        self.raised: Exception | None = None
        engine = Engine(runner, engine_config(), end_token_ids=[])
        self.server: BackendServer = engine_server(
            address, lambda progress: (engine, INFO), drain_s=5, parent_pid=os.getppid()
        )
        self.engine = engine
        self.thread = threading.Thread(target=self._run)
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.connect(address)

    def _run(self) -> None:
        try:
            self.server.run()
        except Exception as error:
            self.raised = error

    def send(self, message: msgspec.Struct) -> None:
        self.socket.send(encode(message))

    def messages(self) -> Iterator[msgspec.Struct]:
        while self.socket.poll(5_000):
            yield to_frontend_decoder.decode(self.socket.recv())

    def await_state(self, state: str) -> None:
        assert any(getattr(message, "state", None) == state for message in self.messages())


@contextmanager
def _setting(tmp_path: Path, faults: set[int]) -> Iterator[Setting]:
    setting = Setting(f"ipc://{tmp_path}/socket", FaultyRunner(faults))
    setting.thread.start()
    setting.send(Hello())
    setting.await_state("ready")
    try:
        yield setting
    finally:
        setting.server.drain()
        setting.thread.join(20)
        setting.socket.close(0)
        assert not setting.thread.is_alive()


def test_a_step_that_fails_once_costs_no_request(tmp_path: Path) -> None:
    with _setting(tmp_path, {2}) as setting:
        setting.send(Submit(1, [5] * 9, SamplingParams(max_new_tokens=3)))
        states, tokens = [], []
        for message in setting.messages():
            states += [message.state] if isinstance(message, Status) else []
            if isinstance(message, StepEvents):
                tokens += [event.token_id for event in message.events]
                if message.events[-1].finish_reason is not None:
                    break
        assert tokens == [11, 12, 13]
        assert "recovering" in states
        self_test = setting.runner.batches[2]
        assert [item.num_tokens for item in self_test.items] == [1]
        assert setting.engine.load.blocks_used == 0
    assert setting.raised is None


def test_an_engine_that_fails_its_self_test_exits(tmp_path: Path) -> None:
    with _setting(tmp_path, {1, 2}) as setting:
        setting.send(Submit(1, [5] * 9, SamplingParams(max_new_tokens=50)))
        failed = next(m for m in setting.messages() if isinstance(m, RequestFailed))
        assert failed.error.kind == "unavailable"
        setting.thread.join(10)
        assert isinstance(setting.raised, RuntimeError)


def _run(engine: Engine) -> tuple[dict[int, list[int]], set[int]]:
    """Run all requests; return their tokens, and the requests that failed."""
    tokens: dict[int, list[int]] = {}
    failed: set[int] = set()
    for _ in range(2000):
        failed |= {request_id for _, request_id, _ in engine.take_failures()}
        if not engine.has_work:
            return tokens, failed
        try:
            events = engine.step()
        except Exception:
            engine.recover()
            engine.scheduler.check_invariants()
            continue
        engine.scheduler.check_invariants()
        for _, event in events:
            tokens.setdefault(event.request_id, []).append(event.token_id)
    raise AssertionError("the engine makes no progress")


@pytest.mark.parametrize("poisoned", [{0}, {7}, {3, 11}, {15, 16}, set(range(17))])
def test_only_the_poisoned_requests_of_a_batch_fail(poisoned: set[int]) -> None:
    runner = FaultyRunner(set())
    engine = Engine(runner, engine_config(max_running=17, num_blocks=100), end_token_ids=[])
    for number in range(17):
        first = POISON if number in poisoned else number + 2
        engine.submit(b"f", Submit(number, [first] + [5] * 6, SamplingParams(max_new_tokens=9)))
    tokens, failed = _run(engine)
    assert failed == poisoned
    assert tokens == {n: list(range(9, 18)) for n in range(17) if n not in poisoned}
    assert engine.load.blocks_used == 0


@pytest.mark.parametrize("max_tokens", [1, 3, 8, 20])
def test_out_of_memory_shrinks_batches_and_fails_no_request(max_tokens: int) -> None:
    runner = FaultyRunner(set())
    engine = Engine(runner, engine_config(num_blocks=100), end_token_ids=[])
    runner.max_tokens = max_tokens
    for number in range(8):
        params = SamplingParams(max_new_tokens=30)
        engine.submit(b"f", Submit(number, [5] * 20, params))
    tokens, failed = _run(engine)
    assert not failed
    assert tokens == {number: list(range(22, 52)) for number in range(8)}


class RecoveringEngine(NoEngine):
    """An engine that has just failed."""

    @property
    def status(self) -> Status:
        return Status("recovering", "the model failed and is tried again", INFO)


def test_a_recovering_engine_is_not_ready() -> None:
    service = Service(RecoveringEngine(), NoEngine.tokenizer)
    with pytest.raises(Unavailable, match="tried again"):
        service.check_ready()
