"""The table of `make chaos`, and the kinds of ends of requests that it distinguishes."""

from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from benchmarks.chaos import table
from benchmarks.chaos.load import Call, Kind
from benchmarks.chaos.trial import Row
from tests.support.services.http_servers import in_background

TOKEN = b'data: {"token": {"text": "a"}, "generated_text": null}\n\n'
LAST = b'data: {"token": {"text": "b"}, "generated_text": "ab"}\n\n'
ERROR = b'data: {"error": "gone", "error_type": "unavailable"}\n\n'
BODIES = {"/whole": TOKEN + LAST, "/cut": TOKEN, "/error": TOKEN + ERROR, "/503": b"{}"}


class _Server(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(503 if self.path == "/503" else 200)
        self.end_headers()
        self.wfile.write(BODIES[self.path])

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("path", "outcome", "text"),
    [("/whole", "whole", "ab"), ("/cut", "cut", "a"), ("/error", "error event", "a"),
     ("/503", "503", "")],
)  # fmt: skip
def test_stream_ends_are_classified(path: str, outcome: str, text: str) -> None:
    with in_background(HTTPServer(("127.0.0.1", 0), _Server)) as server:
        call = Call(f"http://127.0.0.1:{server.server_port}", Kind(path, {}), is_stream=True)
        call.run()
    assert (call.outcome, call.text) == (outcome, text)


def test_the_table_has_a_cell_for_each_head() -> None:
    row = Row("engine killed", "8 x error event", "8 x 503", "9 x 200", 0.12, None, 0, 0, "0", 0)
    lines = table.write([row]).splitlines()
    assert {line.count("|") for line in lines} == {len(table.HEADS) + 1}
    assert "| 0.1 | - |" in lines[2]
    assert row.is_sound
    row.lost = 1
    assert not row.is_sound
