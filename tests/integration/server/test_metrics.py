"""Prometheus metrics: TGI's names, what TGI lacks, and one truth for several frontends."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.support.servers import Server, SharedServers, serving, wait_for

PROMPT = {"inputs": "one two three four " * 30, "parameters": {"max_new_tokens": 4}}
COMPLETION = {"prompt": ["Hi", "there"], "max_tokens": 4}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
# The names of section "metrics" of TGI's router, but for phases that this engine does not have.
COUNTERS = ["tgi_request_count", "tgi_request_success", "tgi_request_failure",
            "tgi_batch_inference_count", "tgi_batch_inference_success",
            "tgi_batch_inference_failure"]  # fmt: skip
GAUGES = ["tgi_queue_size", "tgi_batch_current_size", "tgi_batch_current_max_tokens",
          "tgi_batch_max_total_tokens"]  # fmt: skip
HISTOGRAMS = ["tgi_request_duration", "tgi_request_validation_duration",
              "tgi_request_queue_duration", "tgi_request_inference_duration",
              "tgi_request_mean_time_per_token_duration", "tgi_batch_inference_duration",
              "tgi_batch_forward_duration", "tgi_request_input_length",
              "tgi_request_max_new_tokens", "tgi_request_generated_tokens", "tgi_batch_next_size",
              # and what TGI lacks
              "tgi_request_first_token_duration", "tgi_request_between_tokens_duration",
              "tgi_request_cached_tokens"]  # fmt: skip
OWN_METRICS = ["engine_blocks_used", "engine_blocks_total", "engine_cached_tokens_total"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, endless_model: Path) -> Iterator[Server]:
    """A server with two frontends."""
    log = tmp_path_factory.mktemp("pair") / "log"
    with serving(log, endless_model, WORKERS="2") as running:
        yield running


def _samples(server: Server) -> list[Sample]:
    text = requests.get(f"{server.url}/metrics", timeout=10).text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def _value(server: Server, name: str, **labels: str) -> float:
    """The one sample of this name and these labels; 0 while there is none."""
    return _pick(_samples(server), name, **labels)


def _pick(samples: list[Sample], name: str, **labels: str) -> float:
    values = [sample.value for sample in samples if sample.name == name and sample.labels == labels]
    assert len(values) < 2
    return values[0] if values else 0.0


def test_tgis_metric_names_are_offered_or_documented(server: Server) -> None:
    requests.post(f"{server.url}/generate", json=PROMPT, timeout=60).raise_for_status()
    requests.post(f"{server.url}/generate", json={"inputs": 1}, timeout=60)
    wait_for(lambda: _value(server, "tgi_batch_inference_count", method="decode") > 0, 10)
    names = {sample.name for sample in _samples(server)}
    expected = {*COUNTERS, *GAUGES, *OWN_METRICS, *(f"{name}_bucket" for name in HISTOGRAMS)}
    assert expected <= names


def test_steps_are_counted_by_method(server: Server) -> None:
    samples = _samples(server)  # of one moment
    for method in ("prefill", "decode"):
        begun = _pick(samples, "tgi_batch_inference_count", method=method)
        assert begun == _pick(samples, "tgi_batch_inference_success", method=method) > 0
        assert begun == _pick(samples, "tgi_batch_inference_duration_count", method=method)
        assert _pick(samples, "tgi_batch_inference_failure", method=method) == 0
        whole = _pick(samples, "tgi_batch_inference_duration_sum", method=method)
        assert 0 < _pick(samples, "tgi_batch_forward_duration_sum", method=method) <= whole
    assert _pick(samples, "tgi_batch_next_size_count") == _pick(samples, "engine_steps_total")


@pytest.mark.parametrize(
    ("body", "err"), [({"inputs": 1}, "validation"), ({"inputs": ""}, "validation")]
)
def test_failures_have_tgis_labels(server: Server, body: dict, err: str) -> None:
    before = _value(server, "tgi_request_failure", err=err)
    requests.post(f"{server.url}/generate", json=body, timeout=10)
    assert _value(server, "tgi_request_failure", err=err) == before + 1


def test_cached_tokens_and_gaps_between_tokens_are_counted(server: Server) -> None:
    before = _value(server, "tgi_request_between_tokens_duration_count")
    for _ in range(2):
        requests.post(f"{server.url}/generate", json=PROMPT, timeout=60).raise_for_status()
    assert _value(server, "tgi_request_between_tokens_duration_count") == before + 6
    assert _value(server, "tgi_request_cached_tokens_sum") > 0
    wait_for(lambda: _value(server, "engine_cached_tokens_total") > 0, 10)


def test_metrics_of_several_frontends_are_merged(pair: Server) -> None:
    for _ in range(24):  # new connections, which the kernel deals out
        requests.post(f"{pair.url}/generate", json=PROMPT, timeout=60).raise_for_status()
    assert len(pair.frontends()) == 2
    assert {_value(pair, "tgi_request_success") for _ in range(12)} == {24}
    assert {_value(pair, "tgi_request_generated_tokens_sum") for _ in range(12)} == {96}


def test_running_sequences_are_seen_by_every_frontend(pair: Server) -> None:
    body = {"inputs": "a", "parameters": {"max_new_tokens": 1500}}

    def read() -> None:
        requests.post(f"{pair.url}/generate_stream", json=body, timeout=60)

    streams = [threading.Thread(target=read) for _ in range(3)]
    for stream in streams:
        stream.start()
    wait_for(lambda: _value(pair, "tgi_batch_current_size") == 3, 20)
    assert _value(pair, "tgi_batch_current_max_tokens") == 3 * 1501
    assert _value(pair, "engine_blocks_used") > 0
    for stream in streams:
        stream.join()
    wait_for(lambda: {_value(pair, "engine_blocks_used") for _ in range(6)} == {0}, 20)


@pytest.mark.parametrize("path", ["/generate", "/", "/v1/chat/completions", "/invocations"])
def test_headers_have_the_cost_of_a_request(server: Server, path: str) -> None:
    body = CHAT if "chat" in path else PROMPT
    headers = requests.post(f"{server.url}{path}", json=body, timeout=60).headers
    assert headers["x-compute-type"] == "cpu"
    assert float(headers["x-compute-time"]) > 0
    assert int(headers["x-compute-characters"]) > 0
    assert int(headers["x-generated-tokens"]) in range(1, 5)
    assert int(headers["x-prompt-tokens"]) > 0
    for name in ("total", "validation", "queue", "inference"):
        assert int(headers[f"x-{name}-time"]) >= 0
    assert int(headers["x-time-per-token"]) >= 0


@pytest.mark.parametrize("path", ["/generate_stream", "/v1/chat/completions"])
def test_a_stream_has_the_headers_that_are_known_when_it_begins(server: Server, path: str) -> None:
    body = CHAT if "chat" in path else PROMPT
    headers = requests.post(f"{server.url}{path}", json=body | {"stream": True}, timeout=60).headers
    assert headers["x-compute-type"] == "cpu"
    assert int(headers["x-compute-characters"]) > 0
    assert headers["x-accel-buffering"] == "no"
    assert "x-total-time" not in headers


def test_headers_of_several_prompts_are_sums(server: Server) -> None:
    answer = requests.post(f"{server.url}/v1/completions", json=COMPLETION, timeout=60)
    usage, headers = answer.json()["usage"], answer.headers
    assert int(headers["x-compute-characters"]) == len("Hi" + "there")
    assert int(headers["x-prompt-tokens"]) == usage["prompt_tokens"]
    assert int(headers["x-generated-tokens"]) == usage["completion_tokens"]


def test_errors_have_none_of_them(server: Server) -> None:
    headers = requests.post(f"{server.url}/generate", json={"inputs": 1}, timeout=60).headers
    assert [name for name in headers if name.startswith("x-")] == ["x-request-id"]


def _outcomes(server: Server) -> tuple[float, float]:
    """Requests that came, and those that were answered, refused or given up."""
    samples = _samples(server)
    ends = ("tgi_request_success", "tgi_request_failure", "tgi_request_aborted")
    came = sum(sample.value for sample in samples if sample.name == "tgi_request_count")
    return came, sum(sample.value for sample in samples if sample.name in ends)


def test_every_request_and_its_outcome_are_counted_once(
    shared_servers: SharedServers, endless_model: Path
) -> None:
    server = shared_servers.get(endless_model)
    wait_for(lambda: len(set(_outcomes(server))) == 1, 20)  # what other tests left has ended
    came, _ = _outcomes(server)
    lines = b'{"inputs": "a", "parameters": {"max_new_tokens": 2}}\n{"inputs": 1}\n{"x": 1}\n'
    posts: list[tuple[str, bytes, str, int]] = [
        ("/generate", b'{"inputs": "a", "parameters": {"max_new_tokens": 2}}', "json", 200),
        ("/generate", b'{"inputs": 1}', "json", 422),
        ("/generate_stream", b'{"inputs": "a", "parameters": {"max_new_tokens": 2}}', "json", 200),
        ("/invocations", lines, "jsonlines", 200),
        ("/invocations", b"a", "zip", 415),
        ("/invocations", b"x" * 27_000_000, "json", 413),
        ("/v1/completions", b'{"prompt": ["a", "b"], "max_tokens": 2}', "json", 200),
        ("/v1/embeddings", b'{"input": "a"}', "json", 404),
        ("/tokenize", b'{"inputs": "a"}', "json", 200),
        ("/nowhere", b"{}", "json", 404),
        ("/info", b"{}", "json", 405),
    ]
    for path, body, kind, status in posts:
        headers = {"Content-Type": f"application/{kind}"}
        answer = requests.post(f"{server.url}{path}", body, headers=headers, timeout=60)
        assert answer.status_code == status, (path, answer.text)
    long = {"inputs": "a", "parameters": {"max_new_tokens": 2000}}
    with requests.post(f"{server.url}/generate_stream", json=long, stream=True, timeout=60) as left:
        next(left.iter_content(1))
    body = json.dumps(long).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(head.encode() + body)
        wait_for(lambda: server.metric("engine_blocks_used") > 0, 20)
    wait_for(lambda: _outcomes(server) == (came + len(posts) + 2,) * 2, 20)
