"""Bodies of many records beside other requests: none is refused, and none waits long."""

import contextlib
import json
import threading
import time
from pathlib import Path

import pytest
import requests

from tests.support.servers import Server, SharedServers, wait_for

SHORT = {"inputs": "Hello", "parameters": {"max_new_tokens": 3}}
LONG = {"inputs": "Tell me", "parameters": {"max_new_tokens": 20_000}}
LINES = {"Content-Type": "application/jsonlines"}
CSV = {"Content-Type": "text/csv"}


class Body(threading.Thread):
    """A body of many records on its way; the client disconnects after five seconds."""

    def __init__(self, server: Server, data: bytes, headers: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self._session = requests.Session()
        self._call = (f"{server.url}/invocations", data, headers)
        self.response: requests.Response | None = None

    def run(self) -> None:
        url, data, headers = self._call
        with contextlib.suppress(requests.RequestException):  # it takes longer than the test
            self.response = self._session.post(url, data=data, headers=headers, timeout=5)


@pytest.fixture
def small(shared_servers: SharedServers, endless_model: Path) -> Server:
    return shared_servers.get(endless_model, MAX_CONCURRENT_REQUESTS="4")


def _lines(body: dict, count: int) -> bytes:
    return b"\n".join([json.dumps(body).encode()] * count)


def test_a_long_body_refuses_no_other_request_and_no_other_body(small: Server) -> None:
    long = Body(small, _lines(LONG, 40), LINES)
    long.start()
    wait_for(lambda: small.metric("tgi_batch_current_size") >= 2, 30)
    url = f"{small.url}/generate"
    statuses: list[int] = []
    clients = [
        threading.Thread(
            target=lambda: statuses.append(requests.post(url, json=SHORT, timeout=60).status_code)
        )
        for _ in range(4)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert statuses == [200] * 4
    single = requests.post(
        f"{small.url}/invocations", data=_lines(SHORT, 4), headers=LINES, timeout=60
    )
    assert single.status_code == 200
    assert len(single.text.splitlines()) == 4
    assert long.is_alive() or long.response is None
    long.join()
    wait_for(lambda: small.metric("tgi_batch_current_size") == 0, 30)


def _longest_gap_s(server: Server, until: float) -> float:
    gaps = []
    while time.monotonic() < until:
        started = time.monotonic()
        assert server.ping().status_code == 200
        gaps.append(time.monotonic() - started)
        time.sleep(0.05)
    return max(gaps)


@pytest.mark.parametrize("record", [b"a\n", b'""\n'])
def test_a_large_batch_body_does_not_block_others(small: Server, record: bytes) -> None:
    body = Body(small, b"inputs\n" + record * (1_900_000 // len(record)), CSV)
    body.start()
    assert _longest_gap_s(small, time.monotonic() + 4) < 2
    body.join()


def test_long_csv_records_and_broken_ones(server: Server) -> None:
    text = "word " * 60_000
    url = f"{server.url}/invocations"
    long = requests.post(url, data=f"inputs\n{text}\n", headers=CSV, timeout=60)
    assert long.status_code == 200
    assert "must have less than" in long.text  # the model's limit, not that of the csv module
    wrong = requests.post(url, data="inputs\na\nb,c\n", headers=CSV, timeout=60)
    assert wrong.status_code == 400
    assert "line 3 has 2 columns" in wrong.json()["error"]


@pytest.mark.parametrize(
    ("kind", "records"),
    [(CSV, b"inputs\n" + b"a\n" * 1_000_001), (LINES, b"1\n" * 1_000_001)],
    ids=["csv", "lines"],
)
def test_too_many_records_are_refused(server: Server, kind: dict, records: bytes) -> None:
    response = requests.post(f"{server.url}/invocations", data=records, headers=kind, timeout=60)
    assert response.status_code == 400
    assert "more than 1000000 records" in response.json()["error"]
