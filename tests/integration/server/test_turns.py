"""A slow request leaves the other requests their turns, or is refused early."""

import threading
import time

import pytest
import requests

from tests.support.servers import Server

HELLO = [{"role": "user", "content": "Hello"}]


def _longest_ping_s(server: Server, body: dict, path: str = "/v1/chat/completions"):
    """Send a body; return its response, and the longest that /ping took meanwhile."""
    responses: list[requests.Response] = []

    def send() -> None:
        responses.append(requests.post(f"{server.url}{path}", json=body, timeout=120))

    sender = threading.Thread(target=send)
    sender.start()
    longest_s = 0.0
    while sender.is_alive():
        started = time.monotonic()
        assert server.ping().status_code == 200
        longest_s = max(longest_s, time.monotonic() - started)
        time.sleep(0.02)
    sender.join()
    return responses[0], longest_s


def test_many_choices_are_serialised_in_pieces(server: Server) -> None:
    body = {"messages": HELLO, "n": 64, "logprobs": True, "top_logprobs": 20, "max_tokens": 40}
    response, longest_s = _longest_ping_s(server, body | {"ignore_eos": True})
    assert response.status_code == 200
    choices = response.json()["choices"]
    assert len(choices) == 64
    assert all(len(choice["logprobs"]["content"][0]["top_logprobs"]) == 20 for choice in choices)
    assert longest_s < 2


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": 1}] * 60_000},
        {"messages": [1] * 60_000},
        {"messages": HELLO, "stop": [1] * 100_000},
        {"messages": HELLO, "logit_bias": {str(key): "much" for key in range(60_000)}},
        {"messages": [{"role": "user", "content": [{"type": "no"}] * 60_000}]},
    ],
    ids=["roles", "messages", "stop", "logit_bias", "parts"],
)
def test_a_body_with_many_errors_is_refused_with_one(server: Server, body: dict) -> None:
    response, longest_s = _longest_ping_s(server, body)
    assert response.status_code == 400
    assert len(response.content) < 1000
    assert longest_s < 2


def test_texts_that_are_too_long_are_refused_by_their_length(server: Server) -> None:
    text = "the quick brown fox " * 95_000
    started = time.monotonic()
    for path, body in (
        ("/generate", {"inputs": text}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
        ("/v1/completions", {"prompt": text}),
        ("/v1/responses", {"input": text}),
    ):
        response, longest_s = _longest_ping_s(server, body, path)
        assert response.status_code in (400, 422)
        assert "must have less than" in response.text
        assert "more than" in response.text
        assert longest_s < 2
    assert time.monotonic() - started < 30


def test_a_long_text_may_still_be_cut_or_tokenized(server: Server) -> None:
    text = "the quick brown fox " * 20_000
    parameters = {"truncate": 10, "max_new_tokens": 2}
    url = server.url
    body = {"inputs": text, "parameters": parameters}
    assert requests.post(f"{url}/generate", json=body, timeout=60).status_code == 200
    # All tokens of an answer are described, so that these texts have a limit.
    tokenized = {"inputs": text[: len(text) // 3]}
    response, longest_s = _longest_ping_s(server, tokenized, "/tokenize")
    assert len(response.json()) > 20_000
    assert longest_s < 2
