"""`python -m container chat`: without a server, and its parts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from container.cli.chat import Chat, response_format
from container.cli.chat_client import ChatClient, ChatFailed, Reply, image_part
from tests.support.servers import ROOT, free_port


class Scripted:
    """A client that answers with these deltas."""

    url = "http://here"

    def __init__(self, *deltas: dict, fails: bool = False) -> None:
        self._deltas = deltas
        self._fails = fails
        self.bodies: list[dict] = []

    def stream(self, body: dict, reply: Reply):
        self.bodies.append(json.loads(json.dumps(body)))
        if self._fails:
            raise ChatFailed("full")
        for delta in self._deltas:
            yield reply.take({"choices": [{"delta": delta}]})


def _chat(client: Scripted, **fields: object) -> tuple[Chat, list[str]]:
    printed: list[str] = []
    chat = Chat(client, {"model": "m"}, printed.append, is_terminal=False, **fields)  # type: ignore[arg-type]
    return chat, printed


def test_history_has_the_answers_with_thoughts_and_calls() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}
    client = Scripted(
        {"reasoning_content": "hm"},
        {"content": "Hel"},
        {"content": "lo"},
        {"tool_calls": [call]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
    )
    chat, printed = _chat(client, system="Be brief.")
    chat.send("Hi")
    assert "".join(printed) == "Hello\nf {}\n"
    chat.send("Again")
    assert [message["role"] for message in client.bodies[1]["messages"]] == [
        "system", "user", "assistant", "user",
    ]  # fmt: skip
    said = client.bodies[1]["messages"][2]
    assert (said["content"], said["reasoning_content"]) == ("Hello", "hm")
    assert said["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


def test_a_failed_message_is_not_in_the_history() -> None:
    chat, _ = _chat(Scripted(fails=True))
    with pytest.raises(ChatFailed, match="full"):
        chat.send("Hi")
    assert chat.messages == []


def test_again_asks_the_last_message_once_more() -> None:
    client = Scripted({"content": "a"})
    chat, _ = _chat(client)
    with pytest.raises(ChatFailed, match="no message yet"):
        chat.again()
    chat.send("Hi")
    chat.again()
    assert client.bodies[0]["messages"] == client.bodies[1]["messages"]


@pytest.mark.parametrize(
    ("schema", "problem"), [("nowhere.json", "neither JSON nor a file"), ("{", "this is not JSON")]
)
def test_a_schema_that_is_none_is_refused(schema: str, problem: str) -> None:
    with pytest.raises(ChatFailed, match=problem):
        response_format(schema)


def test_a_schema_comes_from_a_file_or_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"type": "object"}')
    assert response_format(str(tmp_path / "s.json")) == response_format('{"type": "object"}')


@pytest.mark.parametrize(
    ("name", "problem"), [("a.txt", "is no image"), ("no.png", "No such file")]
)
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(ChatFailed, match=problem):
        image_part(tmp_path / name)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("localhost:1", "http://localhost:1"),
        ("https://a/v1", "https://a"),
        ("http://a/", "http://a"),
    ],
)
def test_the_url_may_be_short_or_openais(url: str, base: str) -> None:
    assert ChatClient(url, None).url == base


def test_without_a_server_the_error_says_how_to_start_one() -> None:
    command = [
        sys.executable,
        "-m",
        "container",
        "chat",
        f"http://127.0.0.1:{free_port()}",
        "-m",
        "a",
    ]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60
    )
    assert result.returncode == 1
    assert "container serve" in result.stderr
    assert "Traceback" not in result.stderr


def test_both_commands_are_listed() -> None:
    command = [sys.executable, "-m", "container", "--help"]
    env = {name: value for name, value in os.environ.items() if name != "PORT"}
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=True)
    assert "chat" in shown.stdout
    assert "doctor" in shown.stdout
