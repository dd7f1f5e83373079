"""`python -m container chat` against a server, with and without a terminal."""

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

from tests.support.servers import ROOT, Server

COMMAND = [sys.executable, "-m", "container", "chat"]


def _run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, text=True, cwd=ROOT,
        timeout=60, check=False,
    )  # fmt: skip


def test_a_message_is_answered_alone(server: Server) -> None:
    result = _run(server.url, "--temperature", "0", "-m", "What is deep learning?")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Deep learning")
    assert (
        _run(server.url, "--temperature", "0", stdin="What is deep learning?").stdout
        == result.stdout
    )


def test_an_answer_follows_a_schema(server: Server) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    result = _run(server.url, "--json-schema", json.dumps(schema), "-m", "Ada is 36.")
    assert result.returncode == 0, result.stderr
    assert isinstance(json.loads(result.stdout)["age"], int)


def test_a_refusal_of_the_server_is_shown(server: Server) -> None:
    result = _run(server.url, "--max-tokens", "99999999", "-m", "Hi")
    assert result.returncode == 1
    assert "max_" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_terminal_has_history_and_commands(server: Server, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "TERM": "dumb"}
    process = subprocess.Popen(
        [*COMMAND, server.url, "--temperature", "0"],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=env, close_fds=True,
    )  # fmt: skip
    os.close(theirs)
    _type(ours, "> ", "Hello!\n")
    shown = _type(ours, "tokens/s", "/again\n")
    assert "first after" in shown
    _type(ours, "tokens/s", f"/save {tmp_path}/chat.json\n")
    _type(ours, "2 messages", "/image nowhere.png\n")
    _type(ours, "error: ", "/help\n")
    _type(ours, "/system TEXT", "/exit\n")
    assert process.wait(20) == 0
    os.close(ours)
    roles = [message["role"] for message in json.loads((tmp_path / "chat.json").read_text())]
    assert roles == ["user", "assistant"]
    history = (tmp_path / "sagemaker-llm-container" / "chat_history").read_text()
    assert "Hello!" in history


def _type(terminal: int, after: str, text: str) -> str:
    """Wait until the terminal shows `after`, then type; return what it showed."""
    shown, until = "", time.monotonic() + 30
    while after not in shown:
        assert time.monotonic() < until, f"never {after!r}: {shown}"
        shown += os.read(terminal, 65536).decode(errors="replace")
    os.write(terminal, text.encode())
    return shown
