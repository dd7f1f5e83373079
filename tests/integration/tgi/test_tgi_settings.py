"""Settings under TGI's names, seen from outside a server that has them all."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.servers import Server, serving, wait_for

ORIGIN = "https://app.example"
KEY = {"Authorization": "Bearer k3y"}
LONG = {"inputs": "one two three four " * 40, "parameters": {"max_new_tokens": 1}}


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("configured")
    template = folder / "t.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")
    settings = {
        "API_KEY": "k3y",
        "CORS_ALLOW_ORIGIN": ORIGIN,
        "COMPUTE_TYPE": "2-of-mine",
        "MAX_CLIENT_BATCH_SIZE": "9",
        "PREFIX_CACHING": "0",
        "TOKENIZER_CONFIG_PATH": str(template),
        "CUDA_GRAPHS": "0",
        "SHARDED": "true",
    }
    with serving(folder / "log", **settings) as running:
        yield running


def _preflight(server: Server, origin: str) -> requests.Response:
    asks = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, authorization",
    }
    return requests.options(f"{server.url}/generate", headers=asks, timeout=10)


def test_a_browser_may_call_from_the_allowed_origin_only(configured: Server) -> None:
    allowed = _preflight(configured, ORIGIN)
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "POST" in allowed.headers["Access-Control-Allow-Methods"]
    assert "authorization" in allowed.headers["Access-Control-Allow-Headers"]
    refused = _preflight(configured, "https://other.example")
    assert "Access-Control-Allow-Origin" not in refused.headers
    url = f"{configured.url}/generate_stream"
    answer = requests.post(url, json=LONG, headers=KEY | {"Origin": ORIGIN}, timeout=60)
    assert answer.ok
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


def test_every_origin_is_allowed_by_default(server: Server) -> None:
    assert _preflight(server, "https://any.example").headers["Access-Control-Allow-Origin"] == "*"


def test_the_key_is_asked_for_except_on_open_routes(configured: Server) -> None:
    for path in ("/generate", "/tokenize", "/chat_tokenize", "/v1/chat/completions", "/"):
        refused = requests.post(f"{configured.url}{path}", json={}, timeout=10)
        assert refused.status_code == 401
        assert refused.json()["error"]
    lower = {"Authorization": "bearer k3y"}
    assert requests.post(f"{configured.url}/", json=LONG, headers=lower, timeout=60).ok
    wrong = {"Authorization": "Bearer k3y2"}
    assert requests.post(f"{configured.url}/", json={}, headers=wrong, timeout=9).status_code == 401
    for path in ("/ping", "/health", "/info", "/metrics", "/"):
        assert requests.get(f"{configured.url}{path}", timeout=10).status_code == 200


def test_the_compute_type_is_shown(configured: Server) -> None:
    for path in ("/generate", "/generate_stream"):
        answer = requests.post(f"{configured.url}{path}", json=LONG, headers=KEY, timeout=60)
        assert answer.headers["x-compute-type"] == "2-of-mine"


def test_another_chat_template_is_used(configured: Server) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    answer = requests.post(f"{configured.url}/chat_tokenize", json=body, headers=KEY, timeout=60)
    assert answer.json()["templated_text"] == "[user] Hi"


def test_prefixes_are_computed_again_without_prefix_caching(configured: Server) -> None:
    for _ in range(2):
        requests.post(f"{configured.url}/generate", json=LONG, headers=KEY, timeout=60)
    # The engine says four times a second what it has done.
    wait_for(lambda: configured.metric("engine_prefill_tokens_total") > 0, 10)
    assert configured.metric("engine_cached_tokens_total") == 0


def test_info_has_the_limits(configured: Server) -> None:
    info = requests.get(f"{configured.url}/info", timeout=10).json()
    assert info["max_client_batch_size"] == 9


def test_variables_without_effect_are_one_log_line(configured: Server) -> None:
    lines = [line for line in configured.log.splitlines() if "without effect" in line]
    assert len(lines) == 1
    assert "SHARDED" in lines[0]
