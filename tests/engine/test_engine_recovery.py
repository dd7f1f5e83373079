"""After a failed step: its requests fail, one token proves the engine, then it is ready again."""

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

INFO = EngineInfo("m", "/m", None, "tiny", "float32", "cpu", 100, 200, 240, 256, 32)


class FaultyRunner(ScriptedRunner):
    """Fails the steps of these numbers."""

    def __init__(self, faults: set[int]) -> None:
        super().__init__()
        self.faults = faults

    def run(self, batch: Batch) -> StepOutput:
        output = super().run(batch)
        if len(self.batches) in self.faults:
            raise RuntimeError("injected")
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


def test_a_failed_step_fails_its_requests_and_one_token_proves_the_engine(tmp_path: Path) -> None:
    with _setting(tmp_path, {2}) as setting:
        setting.send(Submit(1, [5] * 9, SamplingParams(max_new_tokens=50)))
        failed = next(m for m in setting.messages() if isinstance(m, RequestFailed))
        assert (failed.request_id, failed.error.kind) == (1, "generation_failed")
        states = []
        for message in setting.messages():
            states += [message.state] if isinstance(message, Status) else []
            if states[-1:] == ["ready"]:
                break
        assert states == ["recovering", "ready"]
        proof = setting.runner.batches[2]
        assert [item.num_tokens for item in proof.items] == [1]
        assert len(setting.runner.batches) == 3
        setting.send(Submit(2, [5], SamplingParams(max_new_tokens=1)))
        answer = next(m for m in setting.messages() if isinstance(m, StepEvents))
        assert answer.events[0].request_id == 2
        assert setting.engine.load.blocks_used == 0
    assert setting.raised is None


def test_an_engine_that_fails_its_proof_leaves(tmp_path: Path) -> None:
    with _setting(tmp_path, {1, 2}) as setting:
        setting.send(Submit(1, [5] * 9, SamplingParams(max_new_tokens=50)))
        assert any(isinstance(message, RequestFailed) for message in setting.messages())
        setting.thread.join(10)
        assert isinstance(setting.raised, RuntimeError)


class RecoveringEngine(NoEngine):
    """An engine that has just failed."""

    @property
    def status(self) -> Status:
        return Status("recovering", "the model failed and is tried again", INFO)


def test_a_recovering_engine_is_not_ready() -> None:
    service = Service(RecoveringEngine(), NoEngine.tokenizer)
    with pytest.raises(Unavailable, match="tried again"):
        service.check_ready()
