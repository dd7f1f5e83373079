"""How long a frontend waits at its start for a backend to say how it is."""

import time
from pathlib import Path

import pytest
import zmq

from container.errors import Unavailable
from container.frontend.clients.engine_client import EngineClient
from container.frontend.clients.engine_router import EngineGroup
from container.messages.common import encode
from container.messages.engine import Status

LONG_S = 60.0


def test_no_wait_for_a_missing_backend(tmp_path: Path) -> None:
    started = time.monotonic()
    group = EngineGroup([f"ipc://{tmp_path}/none", f"ipc://{tmp_path}/none-either"])
    group.start()
    group.wait_known(LONG_S)
    assert time.monotonic() - started < LONG_S / 2
    with pytest.raises(Unavailable):
        _ = group.status


def test_a_backend_that_is_there_is_known_afterwards(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/there"
    backend: zmq.SyncSocket = zmq.Context.instance().socket(zmq.ROUTER)
    backend.bind(address)
    client = EngineClient(address)
    client.start()
    client.wait_known(0.05)
    with pytest.raises(Unavailable):
        _ = client.status
    while not backend.poll(0):
        client.wait_known(0.05)  # lets the client's greenlets run
    identity, _ = backend.recv_multipart()
    backend.send_multipart([identity, encode(Status("ready", "ready"))])
    client.wait_known(LONG_S)
    assert client.status.state == "ready"
    backend.close(linger=0)
