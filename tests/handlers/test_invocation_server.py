"""The handler server over real sockets, with a worker that the test plays."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import zmq

from container.handlers.invocation_server import HandlerLimits, HandlerServer
from container.handlers.worker_pool import WorkerLimits, WorkerProcess
from container.messages.common import Hello, RequestFailed, encode
from container.messages.handler import (
    Acknowledge,
    AnswerHead,
    AnswerPart,
    Cancel,
    HandlerStatus,
    Invoke,
    WorkerReady,
    from_handler_decoder,
    to_worker_decoder,
)

NAME = "worker-0"


class FakeProcess:
    """A process that lives until it is killed."""

    code: int | None = None
    pid = os.getpid()

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.code = -9

    def wait(self) -> int:
        assert self.code is not None
        return self.code


class Peer:
    """The other end of one of the server's sockets."""

    def __init__(self, address: str, decoder: Any, identity: str = "") -> None:
        self.decoder = decoder
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        if identity:
            self.socket.setsockopt(zmq.IDENTITY, identity.encode())
        self.socket.connect(address)

    def send(self, message: msgspec.Struct) -> None:
        self.socket.send(encode(message))

    def receive(self) -> Any:
        """The next message that is no status."""
        while isinstance(message := self.receive_any(), HandlerStatus):
            pass
        return message

    def receive_any(self) -> Any:
        assert self.socket.poll(10_000), "silence"
        return self.decoder.decode(self.socket.recv())

    def await_state(self, state: str) -> None:
        while getattr(self.receive_any(), "state", None) != state:
            pass


class Setting:
    """A server in a thread, with a frontend and a worker that takes one invocation at a time."""

    def __init__(self, address: str, drain_s: float) -> None:
        self.address = address
        self.process = FakeProcess()
        self.raised: BaseException | None = None
        self.server = HandlerServer(
            address,
            f"{address}-workers",
            HandlerLimits(2, 60, 1, drain_s, WorkerLimits(stopped_s=60, memory_bytes=2**50)),
            prepare=lambda progress: progress("preparing"),
            start=lambda number, at: WorkerProcess(NAME, cast("Any", self.process)),
            parent_pid=os.getppid(),
        )
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.frontend = Peer(address, from_handler_decoder)
        self.frontend.send(Hello())
        self.worker = Peer(f"{address}-workers", to_worker_decoder, NAME)
        self.peers = [self.frontend, self.worker]

    def _run(self) -> None:
        try:
            self.server.run()
        except BaseException as error:
            self.raised = error

    def make_ready(self) -> None:
        while getattr(self.frontend.receive_any(), "detail", None) != "preparing":
            pass
        self.worker.send(WorkerReady(1))
        self.frontend.await_state("ready")

    def end(self) -> None:
        self.server.drain()
        self.thread.join(20)
        for peer in self.peers:
            peer.socket.close(0)
        assert not self.thread.is_alive()


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    setting = Setting(f"ipc://{tmp_path}/socket", drain_s=0.5)
    setting.make_ready()
    try:
        yield setting
    finally:
        setting.end()


def _invoke(number: int) -> Invoke:
    return Invoke(number, b"x", "text/plain", "text/plain")


def test_an_invocation_goes_to_a_worker_and_its_answer_back(setting: Setting) -> None:
    setting.frontend.send(_invoke(7))
    invoke = setting.worker.receive()
    setting.worker.send(AnswerHead(invoke.request_id, 200, "text/plain", is_stream=False))
    setting.worker.send(AnswerPart(invoke.request_id, b"y", is_last=True))
    assert setting.frontend.receive() == AnswerHead(7, 200, "text/plain", is_stream=False)
    assert setting.frontend.receive() == AnswerPart(7, b"y", is_last=True)


def test_what_a_client_has_read_is_passed_on_to_its_worker(setting: Setting) -> None:
    setting.frontend.send(_invoke(7))
    running = setting.worker.receive()
    setting.frontend.send(Acknowledge(8, 1))  # of no invocation
    setting.frontend.send(Acknowledge(7, 2))
    assert setting.worker.receive() == Acknowledge(running.request_id, 2)


def test_more_than_the_limit_is_refused(setting: Setting) -> None:
    for number in (1, 2, 3):
        setting.frontend.send(_invoke(number))
    refused = setting.frontend.receive()
    assert (refused.request_id, refused.error.kind) == (3, "overloaded")


def test_a_cancelled_invocation_is_passed_on_or_forgotten(setting: Setting) -> None:
    setting.frontend.send(_invoke(1))
    running = setting.worker.receive()
    setting.frontend.send(_invoke(2))
    setting.frontend.send(Cancel(2))
    setting.frontend.send(Cancel(1))
    assert setting.worker.receive() == Cancel(running.request_id)


def test_invocations_that_outlast_the_drain_are_answered(setting: Setting) -> None:
    for number in (1, 2):
        setting.frontend.send(_invoke(number))
    setting.worker.receive()
    setting.server.drain()
    failed = [setting.frontend.receive() for _ in range(2)]
    assert {(answer.request_id, answer.error.kind) for answer in failed} == {
        (1, "unavailable"),
        (2, "unavailable"),
    }
    setting.thread.join(20)
    assert (setting.raised, setting.process.code) == (None, -9)


def test_a_drain_survives_a_frontend_that_left_with_invocations(setting: Setting) -> None:
    # It sends no Hello, so that no status finds out that it has left.
    leaver = Peer(setting.address, from_handler_decoder)
    for number in (1, 2):
        leaver.send(_invoke(number))
    setting.worker.receive()
    leaver.socket.close(0)
    setting.server.drain()
    setting.thread.join(20)
    assert setting.raised is None


def test_new_invocations_are_refused_while_it_drains(setting: Setting) -> None:
    setting.frontend.send(_invoke(1))
    setting.worker.receive()
    setting.server.drain()
    setting.frontend.await_state("draining")
    setting.frontend.send(_invoke(2))
    refused = setting.frontend.receive()
    assert isinstance(refused, RequestFailed)
    assert (refused.request_id, refused.error.kind) == (2, "unavailable")
