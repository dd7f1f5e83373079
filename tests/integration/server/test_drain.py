"""SIGTERM lets every running request end as usual, plain or streamed, in every dialect."""

import json
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.servers import Server, serving, wait_for

TOKENS = 1500
PARAMETERS = {"max_new_tokens": TOKENS}
DETAILED = {"details": True, "decoder_input_details": True}
GENERATE = {"inputs": "Tell me", "parameters": PARAMETERS}
MESSAGES = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": TOKENS}
PROMPT = {"prompt": "Tell me", "max_tokens": TOKENS}
SCORED = {"prompt": ["one", "two"], "max_tokens": TOKENS, "echo": True, "logprobs": 0}
INPUT = {"input": "Tell me", "max_output_tokens": TOKENS}
STREAM = {"stream": True}
TYPED = MESSAGES | {"system": "Be brief."}  # Anthropic's form


@dataclass(frozen=True)
class Raw:
    """A body of another content type than JSON."""

    content_type: str
    data: bytes


LINES = b"\n".join(json.dumps(body).encode() for body in (GENERATE, MESSAGES, PROMPT))
JSON_LINES = Raw("application/jsonlines", LINES)
# Without a limit they are as long as the context allows.
TEXT = Raw("text/plain", b"Tell me")
ROWS = Raw("text/csv", b"inputs\nTell me\nTell us\n")

# (path, body, sequences in the engine)
PLAIN: list[tuple[str, Any, int]] = [
    ("/generate", GENERATE | {"parameters": PARAMETERS | DETAILED}, 1),
    ("/", GENERATE, 1),
    ("/invocations", GENERATE, 1),
    ("/invocations", MESSAGES, 1),
    ("/invocations", PROMPT, 1),
    ("/invocations", JSON_LINES, 3),
    ("/invocations", TEXT, 1),
    ("/invocations", ROWS, 2),
    ("/v1/chat/completions", MESSAGES, 1),
    ("/chat/completions", MESSAGES, 1),
    ("/v1/completions", SCORED, 2),
    ("/v1/responses", INPUT, 1),
    ("/v1/messages", MESSAGES, 1),
    ("/openai/v1/chat/completions", MESSAGES, 1),
    ("/invocations", TYPED, 1),
]
STREAMED: list[tuple[str, Any, int]] = [
    ("/generate_stream", GENERATE, 1),
    ("/invocations", MESSAGES | STREAM, 1),
    ("/v1/chat/completions", MESSAGES | STREAM, 1),
    ("/v1/completions", SCORED | STREAM, 2),
    ("/v1/responses", INPUT | STREAM, 1),
    ("/v1/messages", MESSAGES | STREAM, 1),
    ("/", GENERATE | STREAM, 1),
    ("/invocations", GENERATE | STREAM, 1),
    ("/invocations", PROMPT | STREAM, 1),
]


class Call(threading.Thread):
    """One request in the background, and its answer or failure."""

    def __init__(self, server: Server, path: str, body: Any) -> None:
        super().__init__(daemon=True)
        self._url = f"{server.url}{path}"
        self._body = body
        self.answer: requests.Response | None = None

    def run(self) -> None:
        if isinstance(self._body, Raw):
            headers = {"Content-Type": self._body.content_type}
            self.answer = requests.post(self._url, self._body.data, headers=headers, timeout=120)
        else:
            self.answer = requests.post(self._url, json=self._body, timeout=120)


@pytest.mark.slow
def test_plain_and_streamed_answers_of_every_dialect_are_whole(
    tmp_path: Path, endless_model: Path
) -> None:
    requested = [*PLAIN, *STREAMED]
    num_sequences = sum(sequences for _, _, sequences in requested)
    settings = {
        "MAX_BATCH_SIZE": str(num_sequences),
        "MAX_TOTAL_TOKENS": str(TOKENS + 500),
        "GRACEFUL_TERMINATION_TIMEOUT": "60",
    }
    with serving(tmp_path / "log", endless_model, **settings) as server:
        calls = [Call(server, path, body) for path, body, _ in requested]
        for call in calls:
            call.start()
        wait_for(
            lambda: server.metric("tgi_batch_current_size") == num_sequences,
            60,
            lambda: "\n".join(call.answer.text[:300] for call in calls if call.answer is not None),
        )
        server.process.send_signal(signal.SIGTERM)
        for call, (path, body, _) in zip(calls, requested, strict=True):
            call.join(90)
            assert call.answer is not None, f"{path} {body!r:.60}: no answer"
            assert call.answer.status_code == 200, f"{path} {body!r:.60}: {call.answer.text[:300]}"
            assert '"error":{' not in call.answer.text, path
            assert "error_type" not in call.answer.text, path
        assert server.process.wait(120) == 0
        assert "Traceback" not in server.log
    detailed = calls[0].answer.json()["details"]
    assert detailed["generated_tokens"] == TOKENS
    assert detailed["prefill"]
    assert len(calls[5].answer.text.splitlines()) == 3
    assert calls[0].answer.headers["x-compute-type"] == "cpu"
