"""A part of `make fuzz`: requests that no client should send, beside a client that behaves."""

import pytest

from benchmarks.chaos.steady_client import steady_client
from benchmarks.fuzz.bodies import cases
from benchmarks.fuzz.sending import fuzz, harm, long_lived
from tests.support.servers import SharedServers

SECONDS = 20.0
SEED = 7


@pytest.mark.slow
def test_odd_bodies_and_headers_get_no_5xx(shared_servers: SharedServers) -> None:
    server = shared_servers.get(MAX_TOTAL_TOKENS="128", LOG_LEVEL="info")
    pids = long_lived(server)
    with steady_client(server.url) as steady:
        report = fuzz(server.port, cases(SEED, 20_000), SECONDS)
    assert report.failures == []
    assert harm(server, pids) == []
    assert report.num_sent > 50
    assert steady.failures == []
    assert steady.num_streams > 0
    assert steady.max_gap_s < 20


def test_a_case_follows_from_its_seed_and_number() -> None:
    assert list(cases(SEED, 200)) == list(cases(SEED, 200))
    assert list(cases(SEED, 50)) != list(cases(SEED + 1, 50))
