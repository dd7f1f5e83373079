"""Deadlines: at REQUEST_DEADLINE, or the request's own, the answer so far is returned."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.servers import Server, SharedServers, wait_for

REASONS = ("length", "incomplete", "max_tokens")
MARK = "X-Request-Deadline-Exceeded"
HEADER = "X-Request-Deadline"
LONG = 90_000
MESSAGES = [{"role": "user", "content": "Tell me everything"}]
# Greedy: a drawn token could be the end token.
CHAT = {"messages": MESSAGES, "max_tokens": LONG, "temperature": 0}
COMPLETION = {"prompt": "Tell me everything", "max_tokens": LONG, "temperature": 0}
GENERATE = {"inputs": "Tell me everything", "parameters": {"max_new_tokens": LONG}}
RESPONSE = {"input": "Tell me everything", "max_output_tokens": LONG, "temperature": 0}
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/responses": RESPONSE,
    "/v1/messages": CHAT | {"model": "any"},
    "/invocations": CHAT,
    "/": GENERATE,
}


@pytest.fixture
def limited(shared_servers: SharedServers, endless_model: Path) -> Server:
    """A server whose answers take two seconds, and one that serves two sequences at a time."""
    return shared_servers.get(endless_model, REQUEST_DEADLINE="2", MAX_BATCH_SIZE="2")


def _post(server: Server, path: str, body: object, **headers: str) -> requests.Response:
    return requests.post(f"{server.url}{path}", json=body, headers=headers, timeout=60)


def _events(response: requests.Response) -> Iterator[dict]:
    for line in response.text.splitlines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def _end(body: dict) -> tuple[object, object]:
    """The finish reason and the mark of an answer, or of a stream's last event."""
    body = body[0] if isinstance(body, list) else body
    if "stop_reason" in body:
        return body["stop_reason"], body["deadline_exceeded"]
    if body.get("choices"):
        return body["choices"][0]["finish_reason"], body["choices"][0]["deadline_exceeded"]
    if "response" in body or "output" in body:
        body = body.get("response", body)
        return body["status"], body["incomplete_details"]["deadline_exceeded"]
    return body["details"]["finish_reason"], body["details"]["deadline_exceeded"]


@pytest.mark.parametrize("path", BODIES)
def test_an_answer_and_a_stream_end_in_time_with_their_text(limited: Server, path: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        streamed = pool.submit(_post, limited, path, BODIES[path] | {"stream": True})
        response = _post(limited, path, BODIES[path])
    assert response.status_code == 200
    assert response.headers[MARK] == "true"
    reason, is_marked = _end(response.json())
    assert reason in REASONS
    assert is_marked
    assert len(response.content) > 100
    assert 1.5 < response.elapsed.total_seconds() < 30
    _check_stream(streamed.result())


def _check_stream(response: requests.Response) -> None:
    """Check that it ended at the deadline, with a whole last event."""
    events = list(_events(response))
    last = events[-2]["delta"] if events[-1].get("type") == "message_stop" else events[-1]
    reason, is_marked = _end(last)
    assert reason in REASONS
    assert is_marked
    assert len(events) > 5
    assert not any(event.get("error") for event in events)


def test_a_request_can_have_a_deadline_of_its_own(
    shared_servers: SharedServers, endless_model: Path
) -> None:
    server = shared_servers.get(endless_model)
    num_cut = server.metric("tgi_request_deadline_exceeded")
    by_field = _post(server, "/v1/chat/completions", CHAT | {"request_deadline": 1})
    parameters = {"max_new_tokens": LONG, "request_deadline": 1, "details": True}
    by_parameter = _post(server, "/generate", {"inputs": "Tell", "parameters": parameters})
    by_header = _post(server, "/generate", GENERATE, **{HEADER: "1"})
    for response in (by_field, by_parameter, by_header):
        assert response.status_code == 200
        assert response.headers[MARK] == "true"
    details = by_parameter.json()["details"]
    assert details["generated_tokens"] == len(details["tokens"])
    wait_for(lambda: server.metric("tgi_request_deadline_exceeded") == num_cut + 3, 20)


@pytest.mark.parametrize("value", ["0.9", "-1", "soon", "nan", "inf"])
def test_a_deadline_that_is_no_number_of_seconds_is_refused(limited: Server, value: str) -> None:
    response = _post(limited, "/v1/chat/completions", CHAT, **{HEADER: value})
    assert response.status_code == 400
    assert HEADER in response.json()["error"]["message"]
    wrong = _post(limited, "/v1/completions", COMPLETION | {"request_deadline": 0})
    assert wrong.json()["error"]["param"] == "request_deadline"


def test_an_answer_that_ends_before_has_no_mark(limited: Server) -> None:
    response = _post(limited, "/generate", {"inputs": "Hi", "parameters": {"max_new_tokens": 2}})
    assert MARK not in response.headers
    assert "details" not in response.json()


def test_in_the_queue_it_is_an_error_in_time(limited: Server) -> None:
    stream = CHAT | {"stream": True}
    url = f"{limited.url}/v1/chat/completions"
    ahead = [requests.post(url, json=stream, stream=True, timeout=60) for _ in range(2)]
    response = _post(limited, "/v1/chat/completions", CHAT, **{HEADER: "1"})
    for other in ahead:
        other.close()
    assert response.status_code == 504
    assert "deadline" in response.json()["error"]["message"]


def test_a_stopped_engine_keeps_no_request_beyond_its_deadline(limited: Server) -> None:
    engine = limited.engine()
    url = f"{limited.url}/v1/chat/completions"
    begun = requests.post(url, json=CHAT | {"stream": True}, stream=True, timeout=60)
    lines = begun.iter_lines(chunk_size=1)
    next(lines)
    engine.suspend()
    try:
        started = time.monotonic()
        refused = _post(limited, "/generate", GENERATE)
        assert refused.status_code == 504
        assert refused.json()["error_type"] == "timeout"
        assert time.monotonic() - started < 20
        rest = [line for line in lines if line.startswith(b"data: {")]
        assert b'"deadline_exceeded":true' in rest[-1]
    finally:
        engine.resume()
    wait_for(lambda: _post(limited, "/generate", GENERATE).status_code == 200, 30)


def test_records_of_a_body_are_answered_or_get_the_error(limited: Server) -> None:
    lines = "\n".join(json.dumps(GENERATE) for _ in range(4))
    response = requests.post(
        f"{limited.url}/invocations",
        data=lines,
        headers={"Content-Type": "application/jsonlines"},
        timeout=60,
    )
    assert response.status_code == 200
    assert response.headers[MARK] == "true"
    answers = [json.loads(line) for line in response.text.splitlines()]
    assert len(answers) == 4
    ended = [answer for answer in answers if isinstance(answer, list)]
    assert ended
    assert all(len(answer[0]["generated_text"]) > 100 for answer in ended)
    assert all("deadline" in answer["error"] for answer in answers if isinstance(answer, dict))
