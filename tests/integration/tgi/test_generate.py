"""TGI's generate shape over the wire."""

import json
from itertools import islice
from typing import Any

import pytest
import requests

from tests.support.servers import Server

PROMPT = "<|im_start|>user\nWhat is deep learning?<|im_end|>\n<|im_start|>assistant\n"


def _post(server: Server, path: str, body: Any, **more: Any) -> requests.Response:
    return requests.post(f"{server.url}{path}", json=body, timeout=60, **more)


def _events(response: requests.Response) -> list[dict]:
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n")
    blocks = [block for block in response.text.split("\n\n") if block]
    assert all(block.startswith("data: ") for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def _text(server: Server, **parameters: Any) -> str:
    body = {"inputs": PROMPT, "parameters": parameters}
    return _post(server, "/generate", body).json()["generated_text"]


def test_generate_answers_an_object_without_the_prompt(server: Server) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 60}}
    answer = _post(server, "/generate", body).json()
    assert list(answer) == ["generated_text"]
    assert answer["generated_text"].startswith("Deep learning")


@pytest.mark.parametrize("path", ["/", "/invocations"])
def test_root_and_invocations_answer_an_array_with_the_prompt(server: Server, path: str) -> None:
    [answer] = _post(server, path, {"inputs": PROMPT, "parameters": {"max_new_tokens": 5}}).json()
    assert answer["generated_text"].startswith(PROMPT)
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 5, "return_full_text": False}}
    [answer] = _post(server, path, body).json()
    assert not answer["generated_text"].startswith(PROMPT)


def test_details(server: Server) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 200, "details": True}}
    answer = _post(server, "/generate", body).json()
    details = answer["details"]
    assert details["finish_reason"] == "eos_token"
    assert details["seed"] is None
    assert details["prefill"] == []
    assert details["generated_tokens"] == len(details["tokens"])
    assert details["tokens"][-1]["special"] is True
    assert "".join(t["text"] for t in details["tokens"][:-1]) == answer["generated_text"]
    assert all(t["logprob"] <= 0 for t in details["tokens"])


def test_stream(server: Server) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 200, "details": True}}
    whole = _post(server, "/generate", body).json()
    events = _events(_post(server, "/generate_stream", body))
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert [event["token"] for event in events] == whole["details"]["tokens"]
    assert {event["generated_text"] for event in events[:-1]} == {None}
    assert events[-1]["generated_text"] == whole["generated_text"]
    last = events[-1]["details"]
    assert last == {
        "finish_reason": "eos_token",
        "generated_tokens": len(events),
        "seed": None,
        "input_length": last["input_length"],
    }


def test_invocations_streams_on_request(server: Server) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 4}, "stream": True}
    events = _events(_post(server, "/invocations", body))
    assert len(events) == 4
    assert events[-1]["generated_text"].startswith(PROMPT)
    assert events[-1]["details"] is None


def test_tgi_samples_without_parameters_only(server: Server) -> None:
    greedy = {_post(server, "/generate", {"inputs": "A", "parameters": {"max_new_tokens": 12}})
              .json()["generated_text"] for _ in range(3)}  # fmt: skip
    assert len(greedy) == 1
    body = {"inputs": "A", "parameters": {"details": True, "max_new_tokens": 3, "do_sample": True}}
    assert _post(server, "/generate", body).json()["details"]["seed"] is not None
    answers = set()
    for _ in range(4):
        with _post(server, "/", {"inputs": "A", "stream": True}, stream=True) as response:
            answers.add(b"".join(islice(response.iter_lines(), 40)))
    assert len(answers) > 1


def test_seeded_sampling_repeats(server: Server) -> None:
    ask = {"do_sample": True, "temperature": 1.5, "top_k": 40, "top_p": 0.95, "seed": 7}
    assert _text(server, **ask, max_new_tokens=30) == _text(server, **ask, max_new_tokens=30)


def test_the_matched_stop_string_stays(server: Server) -> None:
    whole = _text(server, max_new_tokens=60)
    stop = whole[10:16]
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 60, "stop": [stop], "details": True}}
    answer = _post(server, "/generate", body).json()
    assert answer["generated_text"] == whole[: whole.index(stop) + len(stop)]
    assert answer["details"]["finish_reason"] == "stop_sequence"


def test_truncate_keeps_the_last_tokens(server: Server) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 4, "truncate": 3, "details": True}}
    events = _events(_post(server, "/generate_stream", body))
    assert events[-1]["details"]["input_length"] == 3


def test_incomplete_utf8_is_held_back(server: Server) -> None:
    prompt = PROMPT.replace("What is deep learning?", "How do you say hello in Japanese?")
    body = {"inputs": prompt, "parameters": {"max_new_tokens": 60}}
    events = _events(_post(server, "/generate_stream", body))
    texts = [event["token"]["text"] for event in events if not event["token"]["special"]]
    assert "\ufffd" not in "".join(texts)
    assert "こんにちは" in "".join(texts)
    assert "" in texts, "no token of this answer is a part of a character"


def test_generation_fills_the_context_by_default(server: Server) -> None:
    info = requests.get(f"{server.url}/info", timeout=5).json()
    if info["model_device_type"] == "cpu":
        assert info["cpu"] in {
            "amx",
            "avx512_bf16",
            "avx512",
            "avx2",
            "default",
            "neon",
            "neon_bf16",
        }
    body = {"inputs": "1 2 3", "parameters": {"stop": ["never seen"], "details": True}}
    details = _post(server, "/generate", body).json()["details"]
    assert details["finish_reason"] in ("eos_token", "length")
    assert details["generated_tokens"] <= info["max_total_tokens"]
    assert info["attention"] == "paged"


def test_timing_headers(server: Server) -> None:
    response = _post(server, "/generate", {"inputs": "A", "parameters": {"max_new_tokens": 3}})
    assert response.headers["x-generated-tokens"] == "3"
    assert float(response.headers["x-compute-time"]) > 0
    assert int(response.headers["x-total-time"]) >= 0
    assert response.headers["x-compute-characters"] == "1"


BAD = [
    ({"inputs": 1}, 422, "`inputs`"),
    ({"inputs": ["a"]}, 422, "`inputs`"),
    ({"inputs": ""}, 422, "`inputs` cannot be empty"),
    ({"inputs": "a", "parameters": []}, 422, "`parameters`"),
    ({"inputs": "a", "parameters": {"temperature": 0}}, 422, "`temperature` must be strictly"),
    ({"inputs": "a", "parameters": {"temperature": "hot"}}, 422, "`parameters.temperature`"),
    ({"inputs": "a", "parameters": {"top_p": 1.5}}, 422, "`top_p`"),
    ({"inputs": "a", "parameters": {"top_k": 0}}, 422, "`top_k`"),
    ({"inputs": "a", "parameters": {"top_k": 10**400}}, 422, "`top_k`"),
    ({"inputs": "a", "parameters": {"seed": 2**64}}, 422, "`seed`"),
    ({"inputs": "a", "parameters": {"repetition_penalty": 10**400}}, 422, "repetition_penalty`"),
    ({"inputs": "a", "parameters": {"max_new_tokens": 0}}, 422, "`max_new_tokens`"),
    ({"inputs": "a", "parameters": {"max_new_tokens": 5000}}, 422, "must be <= 2048"),
    ({"inputs": "a", "parameters": {"max_new_tokens": 1.5}}, 422, "`parameters.max_new_tokens`"),
    ({"inputs": "a", "parameters": {"stop": "x"}}, 422, "`parameters.stop`"),
    ({"inputs": "a", "parameters": {"stop": ["a"] * 5}}, 422, "`stop` supports up to 4"),
    ({"inputs": "a", "parameters": {"stop": [""]}}, 422, "`stop` must not contain an empty"),
    ({"inputs": "a", "parameters": {"seed": -1}}, 422, "`seed`"),
    ({"inputs": "a", "parameters": {"truncate": 0}}, 422, "`truncate`"),
    ({"inputs": "a", "parameters": {"watermark": "x"}}, 422, "`parameters.watermark`"),
    ({"inputs": "a", "parameters": {"repetition_penalty": 0}}, 422, "`repetition_penalty` must"),
    ({"inputs": "a", "parameters": {"frequency_penalty": 3}}, 422, "`frequency_penalty` must"),
    ({"inputs": "a", "parameters": {"typical_p": 0}}, 422, "`typical_p` must"),
    ({"inputs": "a", "parameters": {"top_n_tokens": 6}}, 422, "`top_n_tokens` must be >= 0"),
    ({"inputs": "a", "parameters": {"best_of": 9}}, 422, "`best_of` must be > 0 and <= 2"),
    ({"inputs": "a", "parameters": {"grammar": {}}}, 422, "`grammar.type`"),
    ({"inputs": "a", "parameters": {"adapter_id": "x"}}, 404, "adapter 'x' is not known"),
    ({"inputs": "x " * 5000}, 422, "`inputs` must have less than"),
]


@pytest.mark.parametrize(("body", "status", "text"), BAD, ids=lambda value: str(value)[:50])
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/invocations", "/"])
def test_bad_input_names_the_field_before_any_stream(
    server: Server, path: str, body: dict, status: int, text: str
) -> None:
    response = _post(server, path, body)
    assert response.status_code == status
    assert response.json()["error_type"] == ("not_found" if status == 404 else "validation")
    assert text in response.json()["error"]


def test_best_of_answers_the_likeliest_and_shows_the_others(server: Server) -> None:
    parameters = {"best_of": 2, "do_sample": True, "temperature": 2.0, "max_new_tokens": 6}
    body = {"inputs": PROMPT, "parameters": parameters | {"details": True}}
    details = _post(server, "/generate", body).json()["details"]
    [other] = details["best_of_sequences"]
    assert details["seed"] != other["seed"]

    def mean(tokens: list[dict]) -> float:
        return sum(token["logprob"] for token in tokens) / len(tokens)

    assert mean(details["tokens"]) >= mean(other["tokens"])
    assert "generated_text" in other


def test_best_of_needs_sampling_without_a_seed_and_no_stream(server: Server) -> None:
    for path, more, text in (
        ("/generate", {}, "you must use sampling"),
        ("/generate", {"do_sample": True, "seed": 1}, "`seed` must not be set"),
        ("/generate_stream", {"do_sample": True}, "not supported when streaming"),
    ):
        body = {"inputs": "a", "parameters": {"best_of": 2, "max_new_tokens": 2} | more}
        response = _post(server, path, body)
        assert response.status_code == 422
        assert text in response.json()["error"]


def test_top_tokens_begin_with_the_greedy_one(server: Server) -> None:
    parameters = {"top_n_tokens": 3, "details": True, "max_new_tokens": 4}
    body = {"inputs": PROMPT, "parameters": parameters}
    details = _post(server, "/generate", body).json()["details"]
    assert [len(top) for top in details["top_tokens"]] == [3] * 4
    assert [top[0]["id"] for top in details["top_tokens"]] == [t["id"] for t in details["tokens"]]
    events = _events(_post(server, "/generate_stream", body))
    assert [event["top_tokens"] for event in events] == details["top_tokens"]


def test_prefill_has_the_prompts_tokens(server: Server) -> None:
    body = {"inputs": "Hello", "parameters": {"decoder_input_details": True, "max_new_tokens": 1}}
    prefill = _post(server, "/generate", body).json()["details"]["prefill"]
    assert "".join(token["text"] for token in prefill) == "Hello"
    assert prefill[0]["logprob"] is None
    assert all(token["logprob"] <= 0 for token in prefill[1:])


def test_penalties_and_filters_change_the_text(server: Server) -> None:
    plain = _text(server, max_new_tokens=30)
    assert _text(server, max_new_tokens=30, repetition_penalty=2.0) != plain
    assert _text(server, max_new_tokens=30, watermark=True) == _text(
        server, max_new_tokens=30, watermark=True
    )
    for parameter in ({"typical_p": 0.9}, {"frequency_penalty": 1.0}, {"top_k": 3}):
        assert _text(server, max_new_tokens=5, seed=1, **parameter)


EXTREMES = [
    {"temperature": 1e-300},
    {"temperature": 1e300},
    {"repetition_penalty": 1e300},
    {"repetition_penalty": 1e-300, "details": True},
    {"top_p": 1e-300},
    {"typical_p": 1e-300},
    {"seed": 2**64 - 1, "do_sample": True},
    {"top_k": 2**31 - 1},
]


@pytest.mark.parametrize("extreme", EXTREMES, ids=str)
def test_extreme_values_are_served(server: Server, extreme: dict) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 3} | extreme}
    response = _post(server, "/generate", body)
    assert response.status_code == 200
    details = response.json().get("details", {"tokens": []})
    assert all(token["logprob"] is not None for token in details["tokens"])


def test_a_long_text_is_refused_with_its_length(server: Server) -> None:
    response = _post(server, "/generate", {"inputs": "many words " * 50_000})
    assert response.status_code == 422
    assert "must have less than 2047 tokens. Given: " in response.json()["error"]
