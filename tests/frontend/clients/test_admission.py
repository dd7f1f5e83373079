"""Requests are refused before work is done for them, by what the engine has said is free."""

import time

import gevent
import pytest

from container.errors import DeadlineExceeded, Overloaded
from container.frontend.clients.admission import Admission
from container.frontend.clients.engine_client import EngineClient
from container.messages.engine import EngineInfo, EngineLoad, Status

FOREVER = float("inf")


class Engine:
    """An engine with a number of free places."""

    def __init__(self, num_free: int) -> None:
        self.num_free = num_free


def _prepare(admission: Admission, deadline_at: float = FOREVER, *, is_batch: bool = False):
    return admission.prepare(deadline_at, is_batch=is_batch)


def test_a_request_in_preparation_counts_as_running() -> None:
    admission = Admission(Engine(2))
    with _prepare(admission), _prepare(admission) as second:
        with pytest.raises(Overloaded, match="MAX_CONCURRENT_REQUESTS"):
            _prepare(admission)
        second.end()
        with _prepare(admission):
            pass
    assert admission.num_preparing == 0


def test_batch_records_do_not_count_as_running() -> None:
    admission = Admission(Engine(1))
    with _prepare(admission), _prepare(admission, is_batch=True):
        assert admission.num_preparing == 1


def test_preparation_ends_at_the_deadline() -> None:
    admission = Admission(Engine(1))
    with pytest.raises(DeadlineExceeded), _prepare(admission, time.monotonic() + 0.05):
        gevent.sleep(10)
    with pytest.raises(DeadlineExceeded):
        _prepare(admission, time.monotonic() - 1)
    with _prepare(admission, time.monotonic() + 0.05) as preparation:
        preparation.end()
        gevent.sleep(0.1)
    assert admission.num_preparing == 0


def test_free_capacity_is_the_status_minus_requests_since(tmp_path) -> None:
    client = EngineClient(f"ipc://{tmp_path}/engine")
    info = EngineInfo("m", "/m", None, "tiny", "float32", "cpu", 9, 9, 9, 9, 9, max_requests=10)

    class Stream:
        is_batch = False

    class Record:
        is_batch = True

    def hear(num_requests: int) -> None:
        client._status = Status("ready", "ready", info, EngineLoad(requests=num_requests))
        client._on_status(client._status)

    hear(4)
    assert client.num_free == 6
    client._streams = {1: Stream(), 2: Record()}
    assert client.num_free == 5
    hear(4)  # of which one is this frontend's
    assert client.num_free == 6
    client._streams = {}
    assert client.num_free == 7
