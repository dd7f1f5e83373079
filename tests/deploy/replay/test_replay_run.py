"""Runs of `replay` in which answers are cut, of unknown forms, or were not recorded."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sagemaker_deploy.commands.main import main

ANSWER = {"choices": [{"index": 0, "message": {"content": "yes"}}]}
UNKNOWN = b'data: {"type": "content_block_delta", "index": 0, "delta": {"text": "a"}}\n\n'


class Handler(BaseHTTPRequestHandler):
    """Answers as the message says: whole, cut in the middle, or with an event out of order."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        data = UNKNOWN if text == "unknown" else json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) + 10 * (text == "cut")))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def _replay(container: str, folder: Path, texts: dict[str, object], *options: str) -> Result:
    file = folder / "requests.jsonl"
    lines = [
        json.dumps({"body": {"messages": [{"role": "user", "content": text}]}, "answer": answer})
        for text, answer in texts.items()
    ]
    file.write_text("\n".join(lines))
    return CliRunner().invoke(main, ["replay", str(file), "--to", container, *options])


def test_one_bad_answer_does_not_end_the_run(container: str, tmp_path: Path) -> None:
    saved = tmp_path / "new.jsonl"
    texts: dict[str, object] = dict.fromkeys(("cut", "unknown", "whole"), ANSWER)
    result = _replay(container, tmp_path, texts, "--save", str(saved))
    assert result.exit_code == 0, result.output
    assert "1 answers exact, 0 changed, 2 failed" in result.output
    assert "KeyError" in result.output
    lines = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [line["answer"] for line in lines] == [None, None, ANSWER]
    assert _replay(container, tmp_path, texts, "--exact").exit_code == 7
    result = _replay(container, tmp_path, texts, "--save", str(tmp_path / "none" / "x"))
    assert "--save" in result.output
    assert result.exit_code != 0


def test_exact_is_about_recorded_answers(container: str, tmp_path: Path) -> None:
    assert _replay(container, tmp_path, {"a": ANSWER, "b": None}, "--exact").exit_code == 0
    changed = {"choices": [{"index": 0, "message": {"content": "no"}}]}
    assert _replay(container, tmp_path, {"a": changed, "b": ANSWER}, "--exact").exit_code == 7
    result = _replay(container, tmp_path, {"a": None}, "--exact")
    assert result.exit_code == 7
    assert "nothing to compare" in result.output
