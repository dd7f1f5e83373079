"""The loop of a process behind the frontends, over a real socket, with a worker that echoes."""

import os
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
import zmq

from container.errors import Overloaded
from container.ipc.backend_server import Progress
from container.ipc.step_server import StepServer
from container.messages.common import Abort, ErrorData, Hello, RequestFailed, encode
from container.messages.engine import (
    SamplingParams,
    Status,
    Submit,
    to_engine_decoder,
    to_frontend_decoder,
)
from tests.support.servers import wait_for


class Echo:
    """Answers each request with an error that carries its prompt; prompt [0] is refused."""

    def __init__(self) -> None:
        self.has_new_status = False
        self.open_requests: list[tuple[bytes, int]] = []
        self.is_released = threading.Event()

    @property
    def has_work(self) -> bool:
        return bool(self.open_requests)

    def take(self, frontend_id: bytes, message: Submit | Abort) -> None:
        if isinstance(message, Abort):
            self.open_requests = [
                key for key in self.open_requests if key != (frontend_id, message.request_id)
            ]
        elif message.prompt_ids == [0]:
            raise Overloaded("no room")
        elif message.prompt_ids == [13]:
            raise RuntimeError("a bug")
        else:
            self.open_requests.append((frontend_id, message.request_id))

    def step(self) -> list[tuple[bytes, msgspec.Struct]]:
        if not self.is_released.wait(0.01):
            return []
        answered, self.open_requests = self.open_requests, []
        return [
            (frontend_id, RequestFailed(number, ErrorData("internal", "echo")))
            for frontend_id, number in answered
        ]

    def recover(self) -> None:
        raise AssertionError("no step fails here")

    def abort_all(self, frontend_id: bytes | None = None) -> list[tuple[bytes, int]]:
        aborted = [key for key in self.open_requests if frontend_id in (None, key[0])]
        self.open_requests = [key for key in self.open_requests if key not in aborted]
        return aborted


class Peer:
    """A frontend's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.connect(address)

    def send(self, message: msgspec.Struct) -> None:
        self.socket.send(encode(message))

    def submit(self, number: int, prompt: list[int]) -> None:
        self.send(Submit(number, prompt, SamplingParams(1)))

    def answer(self) -> RequestFailed:
        """The next message that is no status."""
        while isinstance(message := self.message(), Status):
            pass
        return message

    def message(self) -> msgspec.Struct:
        assert self.socket.poll(10_000), "silence"
        return to_frontend_decoder.decode(self.socket.recv())

    def await_state(self, state: str) -> None:
        while getattr(self.message(), "state", None) != state:
            pass


@pytest.fixture
def setting(tmp_path) -> Iterator[tuple[Echo, StepServer, Peer]]:
    echo = Echo()
    address = f"ipc://{tmp_path}/socket"
    server = StepServer(
        address,
        to_engine_decoder,
        lambda progress: echo,
        lambda state, detail, backend: Status(state, detail),
        drain_s=10,
        parent_pid=os.getppid(),
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    peer = Peer(address)
    peer.send(Hello())
    peer.await_state("ready")
    try:
        yield echo, server, peer
    finally:
        echo.is_released.set()
        server.drain()
        thread.join(20)
        peer.socket.close(0)
        assert not thread.is_alive()


def test_a_refusal_is_answered_at_once(setting) -> None:
    _, _, peer = setting
    peer.submit(1, [0])
    failed = peer.answer()
    assert (failed.request_id, failed.error.kind, failed.error.message) == (
        1,
        "overloaded",
        "no room",
    )


def test_a_status_precedes_the_messages_of_its_step(setting) -> None:
    echo, _, peer = setting
    echo.has_new_status = True
    peer.submit(1, [1])
    echo.is_released.set()
    messages = [peer.message(), peer.message()]
    while not isinstance(messages[-1], RequestFailed):
        messages.append(peer.message())
    assert isinstance(messages[-2], Status)


def test_a_drain_refuses_new_requests_and_finishes_running_ones(setting) -> None:
    echo, server, peer = setting
    peer.submit(1, [1])
    peer.submit(2, [0])
    assert peer.answer().request_id == 2  # so the first one is held
    server.drain()
    peer.await_state("draining")
    peer.submit(3, [1])
    refused = peer.answer()
    assert (refused.request_id, refused.error.kind) == (3, "unavailable")
    echo.is_released.set()
    assert peer.answer().request_id == 1


def test_an_abort_is_heard_while_it_drains(setting) -> None:
    echo, server, peer = setting
    peer.submit(1, [1])
    peer.submit(2, [0])
    assert peer.answer().request_id == 2
    server.drain()
    peer.await_state("draining")
    peer.submit(3, [1])
    assert peer.answer().request_id == 3
    peer.send(Abort(1))
    stopped_by = time.monotonic() + 10
    while echo.open_requests and time.monotonic() < stopped_by:
        time.sleep(0.01)
    assert echo.open_requests == []


def test_a_frame_that_does_not_decode_is_dropped(setting) -> None:
    _, _, peer = setting
    peer.socket.send(b"\xc1 nonsense")
    peer.submit(1, [0])
    assert peer.answer().request_id == 1


def test_a_message_that_raises_fails_alone(setting, caplog) -> None:
    echo, _, peer = setting
    peer.submit(1, [1])
    peer.submit(2, [13])
    failed = peer.answer()
    assert (failed.request_id, failed.error.kind) == (2, "internal")
    assert "a bug" not in failed.error.message
    assert "RuntimeError: a bug" in caplog.text
    echo.is_released.set()
    assert peer.answer().request_id == 1


def test_a_message_that_does_not_decode_fails_its_request(setting) -> None:
    _, _, peer = setting
    broken = {"type": "submit", "request_id": 7, "prompt_ids": "none", "params": {}}
    peer.socket.send(msgspec.msgpack.encode(broken))
    failed = peer.answer()
    assert (failed.request_id, failed.error.kind) == (7, "internal")


def test_a_stage_is_logged_once_while_its_share_grows(
    tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    def load(progress: Progress) -> Echo:
        for stage in ("loading: 1 %", "loading: 50 %", "loading: 99 %", "warming up"):
            progress(stage)
        return Echo()

    server = StepServer(
        f"ipc://{tmp_path}/socket",
        to_engine_decoder,
        load,
        lambda state, detail, backend: Status(state, detail),
        drain_s=10,
        parent_pid=os.getppid(),
    )
    caplog.set_level("INFO")
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.state == "ready", 20)
    server.drain()
    thread.join(20)
    logged = [record.message for record in caplog.records]
    assert [line for line in logged if "%" in line or "warming" in line] == [
        "loading: 1 %",
        "warming up",
    ]
