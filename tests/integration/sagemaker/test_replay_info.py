"""The headers that an exact replay needs, for those who ask."""

import json

import requests

from tests.support.servers import Server

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 1.5}
ASKED = {"X-Replay-Info": "true"}
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


def _ask(server: Server, body: dict, headers: dict, path: str = "/invocations"):
    answer = requests.post(server.url + path, json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def test_the_seed_of_the_header_repeats_the_answer(server: Server) -> None:
    first = _ask(server, CHAT, ASKED)
    info = json.loads(first.headers["X-Replay-Info"])
    assert info["model_id"]
    assert info["dtype"] == "float32"
    again = _ask(server, CHAT | {"seed": info["seed"]}, {})
    assert "X-Replay-Info" not in again.headers
    assert again.json()["choices"] == first.json()["choices"]


def test_streams_and_every_api_have_it(server: Server) -> None:
    messages = {"messages": CHAT["messages"], "max_tokens": 4}
    for path, body in (
        ("/v1/chat/completions", CHAT | {"stream": True}),
        ("/v1/messages", messages),
        ("/v1/messages", messages | {"stream": True}),
        ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 2, "temperature": 0.5}}),
    ):
        info = json.loads(_ask(server, body, ASKED, path).headers["X-Replay-Info"])
        assert isinstance(info["seed"], int)
    greedy = _ask(server, CHAT | {"temperature": 0}, ASKED)
    assert json.loads(greedy.headers["X-Replay-Info"])["seed"] is None


def test_custom_attributes_carry_it_through_sagemaker(server: Server) -> None:
    for attributes, begin in (
        ("replay-info=true", "replay-info={"),
        ("a=b,replay-info=true", "a=b,replay-info={"),
        (
            "route=/v1/chat/completions, replay-info=true",
            "route=/v1/chat/completions,replay-info={",
        ),
    ):
        returned = _ask(server, CHAT, {ATTRIBUTES: attributes}).headers[ATTRIBUTES]
        assert returned.startswith(begin)
        assert json.loads(returned.partition("replay-info=")[2])["seed"] >= 0
    plain = _ask(server, CHAT, {ATTRIBUTES: "a=b,no-replay-info=true"})
    assert plain.headers[ATTRIBUTES] == "a=b,no-replay-info=true"
