"""Limits and faults of SageMaker and of containers, as a proxy's clients see them."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import requests
from aiohttp import web

from sagemaker_deploy.proxy.runtime.retries import RetrySettings
from sagemaker_deploy.replay.records import read_records
from tests.support.aws.local_sagemaker import Local
from tests.support.aws.proxies import QUICK, proxying
from tests.support.servers import wait_for


def _ask(proxy: str, text: str, model: str = "tgi", **fields: Any) -> requests.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}]} | fields
    return requests.post(f"{proxy}/v1/chat/completions", json=body, timeout=60)


def _text(answer: requests.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


def test_an_answer_longer_than_60_s_is_joined_from_a_stream(proxy: str) -> None:
    # A whole answer would be lost after 1 s here; this one takes 2.
    started = time.monotonic()
    assert _text(_ask(proxy, "slow 0.5")) == "one two three"
    assert time.monotonic() - started > 1


def test_a_stream_that_sagemaker_cuts_gives_the_text_so_far(proxy: str) -> None:
    answer = _ask(proxy, "slow 1.5")
    assert answer.status_code == 200
    assert answer.headers["X-Request-Deadline-Exceeded"] == "true"
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == "one two three"[: len(choice["message"]["content"])]
    assert choice["message"]["content"]


@pytest.mark.parametrize("status", [429, 503])
def test_refused_requests_are_sent_again(proxy: str, status: int) -> None:
    assert _text(_ask(proxy, f"fail {status} 2 again{status}")) == "one two three"
    stream = _ask(proxy, f"fail {status} 2 stream{status}", stream=True)
    assert "three" in stream.text


def test_a_broken_stream_is_begun_again_before_the_first_byte(proxy: str) -> None:
    assert _text(_ask(proxy, "cut once")) == "one two three"


def test_what_always_fails_is_an_error_of_the_clients_api(proxy: str, vendors: Local) -> None:
    answer = _ask(proxy, "break", max_tokens=3)
    assert answer.status_code == 502
    assert "broke the stream off" in answer.json()["error"]["message"]
    text = _ask(proxy, "break", stream=True).text
    assert '"error":{' in text.splitlines()[-2]
    claude = anthropic.Anthropic(base_url=proxy, api_key="-", max_retries=0)
    messages: Any = [{"role": "user", "content": "fail 429 99 always"}]
    with pytest.raises(anthropic.RateLimitError, match="not now"):
        claude.messages.create(model="tgi", max_tokens=5, messages=messages)
    body = {"model": "generate", "inputs": "fail 429 99 inputs"}
    answer = requests.post(f"{proxy}/generate", json=body, timeout=30)
    assert answer.status_code == 429
    assert answer.json() == {"error": "not now", "error_type": "overloaded"}
    assert answer.headers["Retry-After"]


def test_the_status_of_a_stream_that_broke_is_not_200(vendors: Local) -> None:
    with proxying({"tgi": {"endpoint": "tgi", "container": "tgi"}}) as proxy:
        assert '"error":{' in _ask(proxy, "break", stream=True).text
        text = requests.get(f"{proxy}/metrics", timeout=10).text
    assert 'api="chat",status="502"} 1' in text
    assert 'status="200"' not in text


def test_an_answer_that_cannot_be_recorded_is_not_lost(vendors: Local) -> None:
    models = {"tgi": {"endpoint": "tgi", "container": "tgi"}}
    with proxying(models, record=Path("/dev/full")) as proxy:
        assert _text(_ask(proxy, "a")) == "one two three"
        assert "[DONE]" in _ask(proxy, "a", stream=True).text


def test_a_stream_is_recorded_though_its_client_left_at_the_end(
    vendors: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def leave(self: web.StreamResponse, data: bytes = b"") -> None:
        raise ConnectionResetError("the client closed behind [DONE]")

    monkeypatch.setattr(web.StreamResponse, "write_eof", leave)
    record = tmp_path / "log.jsonl"
    with proxying({"tgi": {"endpoint": "tgi", "container": "tgi"}}, record=record) as proxy:
        body = {"model": "tgi", "messages": [{"role": "user", "content": "a"}], "stream": True}
        url = f"{proxy}/v1/chat/completions"
        with requests.post(url, json=body, stream=True, timeout=30) as answer:
            assert any(b"[DONE]" in line for line in answer.iter_lines())
        wait_for(lambda: record.read_text().endswith("\n"), 20, lambda: "nothing was recorded")
    [line] = read_records(str(record))
    assert line.answer["choices"][0]["message"]["content"] == "one two three"


def test_a_clients_mistake_is_not_sent_again(proxy: str) -> None:
    answer = _ask(proxy, "fail 422 1 mistake")
    assert answer.status_code == 422
    assert "not now" in answer.json()["error"]["message"]


def test_retries_end_with_their_budget(vendors: Local) -> None:
    settings = RetrySettings(most=50, share=0.0, first_wait_s=0.001, longest_wait_s=0.002)
    with proxying({"tgi": {"endpoint": "tgi", "container": "tgi"}}, retries=settings) as proxy:
        assert _ask(proxy, "fail 429 99 budget").status_code == 429
        text = requests.get(f"{proxy}/metrics", timeout=10).text
        assert 'sagemaker_proxy_retries_total{model="tgi",cause="throttled"} 10' in text
        assert _ask(proxy, "fail 429 1 spent").status_code == 429


def test_an_unknown_endpoint_is_a_404_and_a_dead_one_a_502(vendors: Local) -> None:
    models = {name: {"endpoint": name, "container": "tgi"} for name in ("nobody", "tgi")}
    with proxying(models, retries=QUICK) as proxy:
        assert _ask(proxy, "a", "nobody").status_code == 404
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", "http://127.0.0.1:9")
        with proxying(models, retries=QUICK) as proxy:
            answer = _ask(proxy, "a")
    assert answer.status_code == 502
    assert "no answer from SageMaker" in answer.json()["error"]["message"]


def _scale(local: Local, copies: int) -> None:
    """Change the copies of the component `part`, when it has settled."""
    assert local.settle_component("part")["InferenceComponentStatus"] == "InService"
    local.sagemaker.update_inference_component_runtime_config(
        InferenceComponentName="part", DesiredRuntimeConfig={"CopyCount": copies}
    )


def test_requests_wait_for_the_first_copy_of_a_component(vendors: Local) -> None:
    vendors.deploy_without_models("zero")
    compute = {"ComputeResourceRequirements": {"MinMemoryRequiredInMb": 128}}
    vendors.add_component("zero", "part", {"ModelName": "tgi"} | compute)
    _scale(vendors, 0)
    models = {"part": {"endpoint": "zero", "component": "part", "container": "tgi"}}
    with proxying(models) as proxy, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(_ask, proxy, "a", "part") for _ in range(8)]
        time.sleep(0.5)
        assert not any(answer.done() for answer in answers)
        _scale(vendors, 1)
        assert {_text(answer.result(60)) for answer in answers} == {"one two three"}
    impatient = RetrySettings(capacity_wait_s=0.2, capacity_poll_s=0.05)
    _scale(vendors, 0)
    with proxying(models, retries=impatient) as proxy:
        answer = _ask(proxy, "a", "part")
    assert answer.status_code == 503
    assert "no capacity" in answer.json()["error"]["message"]


def test_a_client_that_leaves_ends_its_invocation(proxy: str) -> None:
    client = openai.OpenAI(base_url=f"{proxy}/v1", api_key="-")
    stream = client.chat.completions.create(
        model="tgi", messages=[{"role": "user", "content": "slow 0.5"}], stream=True
    )
    next(stream)
    stream.close()
    client.close()
    deadline = time.monotonic() + 10
    while "running_requests 0" not in requests.get(f"{proxy}/metrics", timeout=10).text:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_many_streams_at_a_time(proxy: str) -> None:
    with ThreadPoolExecutor(40) as pool:
        texts = list(pool.map(lambda _: _ask(proxy, "slow 0.05", stream=True).text, range(80)))
    ends = {text[-len("data: [DONE]\n\n") :] for text in texts if "three" in text}
    assert ends == {"data: [DONE]\n\n"}, [text for text in texts if "three" not in text][:1]


def test_texts_without_utf8_and_headers_without_ascii(proxy: str) -> None:
    raw = '{"model": "tgi", "messages": [{"role": "user", "content": "\\ud800"}]}'
    answer = requests.post(f"{proxy}/v1/chat/completions", data=raw, timeout=30)
    assert _text(answer) == "one two three"
    headers = {"X-Amzn-SageMaker-Custom-Attributes": "é".encode()}
    answer = requests.post(f"{proxy}/v1/chat/completions", data=raw, headers=headers, timeout=30)
    assert answer.status_code == 400
    assert "ASCII" in answer.json()["error"]["message"]
