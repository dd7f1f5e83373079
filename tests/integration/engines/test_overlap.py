"""A server whose steps overlap answers as one whose steps do not."""

import concurrent.futures
from pathlib import Path
from typing import Any

import requests

from tests.support.servers import serving, spawn, wait_for

SCHEMA = {
    "type": "object",
    "properties": {"animal": {"type": "string", "maxLength": 12}, "legs": {"type": "integer"}},
    "required": ["animal", "legs"],
    "additionalProperties": False,
}
QUESTION = "What is the capital of France?"
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"inputs": QUESTION, "parameters": {"max_new_tokens": 30, "details": True}}),
    (
        "/generate",
        {
            "inputs": QUESTION,
            "parameters": {
                "max_new_tokens": 24, "temperature": 0.9, "top_p": 0.9, "seed": 5,
                "repetition_penalty": 1.2, "top_n_tokens": 2, "decoder_input_details": True,
            },
        },
    ),
    (
        "/generate",
        {
            "inputs": "Tell me of an animal.",
            "parameters": {"max_new_tokens": 60, "grammar": {"type": "json", "value": SCHEMA}},
        },
    ),
]  # fmt: skip


def answers(url: str) -> list[Any]:
    def ask(call: tuple[str, dict[str, Any]]) -> Any:
        response = requests.post(url + call[0], json=call[1], timeout=60)
        assert response.status_code == 200, response.text
        return _text(response.json())

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, CALLS * 4))


def _text(answer: dict[str, Any]) -> Any:
    """The text and its tokens, without the last digits, which rounding changes."""
    details = answer.get("details") or {}
    tokens = [(one["id"], round(one["logprob"], 2)) for one in details.get("tokens", [])]
    return answer["generated_text"], tokens, details.get("finish_reason")


def long_answers(url: str) -> list[str]:
    """Of prompts that do not fit the cache together, the first ones twice."""
    texts = []
    for number in (*range(6), *range(3)):
        body = {"inputs": f"{number} " + "word " * 200, "parameters": {"max_new_tokens": 5}}
        response = requests.post(f"{url}/generate", json=body, timeout=60)
        texts.append(response.json()["generated_text"])
    return texts


def test_overlapping_steps_and_swapped_prefixes_answer_the_same(tmp_path: Path) -> None:
    sizes = {"MAX_TOTAL_TOKENS": "512", "MAX_BATCH_TOTAL_TOKENS": "768"}
    with serving(tmp_path / "plain", **sizes) as server:
        expected, long_expected = answers(server.url), long_answers(server.url)
    more = {"OVERLAP_STEPS": "true", "SWAP_SPACE": "0.01"}
    with serving(tmp_path / "log", **sizes, **more) as server:
        assert answers(server.url) == expected
        assert long_answers(server.url) == long_expected
        wait_for(lambda: server.metric("engine_restored_tokens_total") > 0, 10)
        # A client that leaves in the middle costs nothing but its own row.
        path, body = CALLS[0]
        body = {"inputs": body["inputs"], "parameters": {"max_new_tokens": 400}, "stream": True}
        with requests.post(server.url + path, json=body, stream=True, timeout=60) as response:
            next(response.iter_content(1))
        wait_for(lambda: server.metric("engine_blocks_used") == 0, 20)
        assert answers(server.url) == expected
        assert server.metric('tgi_batch_inference_failure{method="decode"}') == 0


def test_swap_space_that_cannot_be_stops_the_start(tmp_path: Path) -> None:
    server = spawn(tmp_path / "log", SWAP_SPACE="1000000")
    assert server.process.wait(120) == 2
    assert "SWAP_SPACE=1000000 exceeds" in server.log
