"""A served recurrent model: many clients at once, known prefixes, and what it reports."""

import concurrent.futures
from pathlib import Path

import requests
from transformers import AutoTokenizer

from tests.support.models import tiny_models
from tests.support.servers import DEMO_MODEL, serving, wait_for


def _ask(url: str, words: str) -> str:
    body = {"inputs": words, "parameters": {"max_new_tokens": 12}}
    response = requests.post(f"{url}/generate", json=body, timeout=60)
    assert response.ok, response.text
    return str(response.json()["generated_text"])


def _metric(url: str, name: str) -> float:
    lines = requests.get(f"{url}/metrics", timeout=10).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_clients_share_its_steps_and_known_prefixes(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    path = tmp_path / "model"
    tokenizer.save_pretrained(path)
    tiny_models.make("qwen3_next", vocabulary=len(tokenizer)).save_pretrained(path)
    prompts = [f"{number} " + "word and another " * (26 + 3 * number) for number in range(6)]
    sizes = {"DTYPE": "float32", "MAX_BATCH_SIZE": "4"}
    with serving(tmp_path / "log", model=path, **sizes) as server:
        alone = [_ask(server.url, prompt) for prompt in prompts]
        wait_for(lambda: _metric(server.url, "engine_state_snapshots") > 0, 10)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            assert list(pool.map(lambda prompt: _ask(server.url, prompt), prompts)) == alone
        wait_for(lambda: _metric(server.url, "engine_cached_tokens_total") > 0, 10)
        assert _metric(server.url, "engine_state_slots_total") == 4
        wait_for(lambda: _metric(server.url, "engine_state_slots_used") == 0, 10)
        info = requests.get(f"{server.url}/info", timeout=10).json()
        assert (info["attention"], info["state_slots"], info["fallbacks"]) == ("paged", 4, [])
        assert "4 running sequences, 8 snapshots" in server.log
