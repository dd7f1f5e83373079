"""The request bodies of TGI's Messages API documentation, sent by curl."""

import json
import shutil
import subprocess

import pytest

from tests.support.servers import Server

NOT_STREAMED = """{
  "model": "tgi",
  "messages": [
    {
      "role": "system",
      "content": "You are a helpful assistant."
    },
    {
      "role": "user",
      "content": "What is deep learning?"
    }
  ],
  "stream": false,
  "max_tokens": 20
}"""
STREAMED = NOT_STREAMED.replace('"stream": false', '"stream": true')


def _curl(server: Server, path: str, body: str) -> str:
    command = [
        "curl", "-sN", f"{server.url}{path}", "-X", "POST", "-d", body,
        "-H", "Content-Type: application/json",
    ]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(scope="module", autouse=True)
def _has_curl() -> None:
    assert shutil.which("curl"), "these tests need curl"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/invocations"])
def test_messages(server: Server, path: str) -> None:
    chat = json.loads(_curl(server, path, NOT_STREAMED))
    assert chat["object"] == "chat.completion"
    assert chat["choices"][0]["message"]["role"] == "assistant"
    assert chat["choices"][0]["message"]["content"]
    assert chat["usage"]["completion_tokens"] <= 20


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/invocations"])
def test_streamed_messages(server: Server, path: str) -> None:
    raw = _curl(server, path, STREAMED)
    assert raw.endswith("\n")
    events = [line.removeprefix("data: ") for line in raw.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
