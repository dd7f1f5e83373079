"""A served encoder-decoder model: many clients at once, stop strings, grammars, seeds."""

import concurrent.futures
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from transformers import AutoTokenizer

from tests.support.models import tiny_models
from tests.support.servers import DEMO_MODEL, Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("encoder-decoder")
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokenizer.save_pretrained(folder / "model")
    model = tiny_models.make("t5", vocabulary=len(tokenizer))
    model.save_pretrained(folder / "model")
    with serving(folder / "log", model=folder / "model", DTYPE="float32") as started:
        yield started


def _generate(server: Server, inputs: str, **parameters: Any) -> str:
    body = {"inputs": inputs, "parameters": {"max_new_tokens": 12} | parameters}
    response = requests.post(f"{server.url}/generate", json=body, timeout=60)
    assert response.ok, response.text
    return str(response.json()["generated_text"])


def test_clients_at_once_get_the_answers_that_they_get_alone(server: Server) -> None:
    prompts = [f"{number} " + "word and another " * (1 + 5 * number) for number in range(8)]
    alone = [_generate(server, prompt) for prompt in prompts]
    assert len(set(alone)) > 1
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda prompt: _generate(server, prompt), prompts)) == alone
    info = requests.get(f"{server.url}/info", timeout=10).json()
    assert info["attention"] == "paged"


def test_a_grammar_and_a_stop_string_end_an_answer(server: Server) -> None:
    grammar = {"type": "regex", "value": "[a-c]{3}-[0-9]{2}"}
    answer = _generate(server, "Which code?", grammar=grammar, max_new_tokens=40)
    assert len(answer) == 6
    assert answer[3] == "-"
    whole = _generate(server, "Which word?", max_new_tokens=20)
    stop = whole[len(whole) // 2 :][:3]
    stopped = _generate(server, "Which word?", max_new_tokens=20, stop=[stop])
    assert stopped == whole[: whole.index(stop) + len(stop)]


def test_seeds_and_streams(server: Server) -> None:
    sampled = {"do_sample": True, "temperature": 1.5}
    first, again, other = (_generate(server, "Say it", seed=seed, **sampled) for seed in (1, 1, 2))
    assert first == again != other
    body = {"model": "m", "prompt": "Say it", "max_tokens": 9, "stream": True, "temperature": 0}
    with requests.post(
        f"{server.url}/v1/completions", json=body, stream=True, timeout=60
    ) as answer:
        events = [line[6:] for line in answer.iter_lines() if line.startswith(b"data: {")]
    text = "".join(json.loads(event)["choices"][0]["text"] for event in events)
    assert text == _generate(server, "Say it", max_new_tokens=9)


def test_an_adapter_is_refused_by_name(server: Server) -> None:
    body = {"name": "one", "src": "/nowhere"}
    answer = requests.post(f"{server.url}/adapters", json=body, timeout=10)
    assert 400 <= answer.status_code < 500, answer.text
