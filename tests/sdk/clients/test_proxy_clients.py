"""Unmodified clients through the proxy to the real server, and a replay of what they asked."""

import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import boto3
import litellm
import openai
import pytest
import requests
from click.testing import CliRunner

from sagemaker_deploy.commands.main import main
from tests.support.aws.local_sagemaker import DEMO_MODEL, Local
from tests.support.aws.proxies import proxying
from tests.support.chats.anthropic_tools import WEATHER

MESSAGES: Any = [{"role": "user", "content": "What is deep learning?"}]
GREEDY: Any = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "requests.jsonl"


@pytest.fixture(scope="module")
def proxy(demo: str, log: Path) -> Iterator[str]:
    with proxying({"demo": {"endpoint": demo}}, record=log) as url:
        yield url


@pytest.fixture(scope="module")
def client(proxy: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{proxy}/v1", api_key="-", max_retries=0)


def _direct(demo: str, body: dict[str, Any], route: str) -> Any:
    answer = boto3.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=demo,
        ContentType="application/json",
        CustomAttributes=f"route={route}",
        Body=json.dumps(body),
    )
    return json.loads(answer["Body"].read())


def _timeless(answer: Any) -> Any:
    return {key: value for key, value in answer.items() if key not in ("id", "created")}


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", GREEDY),
        ("/v1/chat/completions", GREEDY | {"logprobs": True, "top_logprobs": 2, "n": 2}),
        ("/v1/chat/completions", GREEDY | {"response_format": {"type": "json_object"}}),
        ("/v1/chat/completions", GREEDY | {"stop": ["learning"]}),
        ("/v1/chat/completions", GREEDY | {"prompt_logprobs": 1}),
        ("/v1/completions", {"prompt": "Deep", "max_tokens": 6, "temperature": 0, "logprobs": 2}),
        ("/v1/completions", {"prompt": ["Deep", "Hi"], "max_tokens": 6, "temperature": 0}),
        ("/v1/messages", GREEDY),
        ("/v1/messages", GREEDY | {"max_tokens": 200, "tools": [WEATHER],
                                   "tool_choice": {"type": "any"}}),
        ("/generate", {"inputs": "Deep", "parameters": {"max_new_tokens": 6, "details": True}}),
        ("/generate", {"inputs": "Deep", "parameters": {"max_new_tokens": 6, "details": True,
                                                        "top_n_tokens": 2}}),
        ("/generate", {"inputs": "Deep", "parameters": {"max_new_tokens": 6}}),
        ("/v1/messages/count_tokens", {"messages": MESSAGES}),
    ],
)  # fmt: skip
def test_joined_answers_are_those_without_a_stream(
    proxy: str, demo: str, route: str, body: dict[str, Any]
) -> None:
    """Requests differ only in ids and times; blocks of tools have ids, too."""
    joined = requests.post(proxy + route, json=body, timeout=60)
    assert joined.status_code == 200, joined.text
    expected, answer = _timeless(_direct(demo, body, route)), _timeless(joined.json())
    for value in (expected, answer):
        for block in value.get("content") or []:
            block.pop("id", None)
    if "usage" in expected:  # the second one finds its prefix in the cache
        for value in (expected, answer):
            value["usage"] = {k: n for k, n in value["usage"].items() if k.startswith("completion")}
    assert answer == expected


def test_openais_client(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="demo", stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = client.chat.completions.create(model="any name", **GREEDY)
    assert whole.choices[0].message.content == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
    response = client.responses.create(model="demo", input="Hello", temperature=0)
    assert response.output_text
    with client.responses.stream(model="demo", input="Hello", temperature=0) as events:
        assert events.get_final_response().output_text == response.output_text
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="demo", messages=MESSAGES, temperature=-1)


def test_anthropics_client(proxy: str) -> None:
    claude = anthropic.Anthropic(base_url=proxy, api_key="-", max_retries=0)
    question: Any = {"model": "demo", "max_tokens": 12, "messages": MESSAGES}
    question["extra_body"] = {"temperature": 0}
    whole = claude.messages.create(**question)
    with claude.messages.stream(**question) as stream:
        assert stream.get_final_message().content[0].text == whole.content[0].text
    counted = claude.messages.count_tokens(model="demo", messages=MESSAGES)
    assert counted.input_tokens > 3
    with pytest.raises(anthropic.BadRequestError, match="stop_sequences"):
        claude.messages.create(**question, stop_sequences=[""])


def test_litellm(proxy: str) -> None:
    fields: Any = {"model": "openai/demo", "api_base": f"{proxy}/v1", "api_key": "-"}
    whole = litellm.completion(**fields, **GREEDY).choices[0].message.content
    pieces = litellm.completion(**fields, **GREEDY, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole
    answer = litellm.completion(model="anthropic/demo", api_base=proxy, api_key="-", **GREEDY)
    assert answer.choices[0].message.content == whole


def test_open_webuis_requests(proxy: str) -> None:
    headers = {"Authorization": "Bearer -"}
    models = requests.get(f"{proxy}/v1/models", headers=headers, timeout=30).json()
    assert [model["id"] for model in models["data"]] == ["demo"]
    body = GREEDY | {"model": "demo", "stream": True, "metadata": {"chat_id": "1"}}
    body["stream_options"] = {"include_usage": True}
    with requests.post(
        f"{proxy}/v1/chat/completions", json=body, headers=headers, stream=True, timeout=60
    ) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == b"data: [DONE]"
    assert json.loads(lines[-2][5:])["usage"]["completion_tokens"] == 12


def test_a_replay_of_the_log_is_exact_with_its_seeds(
    client: openai.OpenAI, log: Path, demo: str, local: Local, tmp_path: Path
) -> None:
    # Hot enough for the demo model, which knows its texts by heart.
    messages = [{"role": "user", "content": "x q z"}]
    sampled: Any = {"messages": messages, "max_tokens": 40, "temperature": 10}
    before = len(log.read_text().splitlines())
    client.chat.completions.create(model="demo", **sampled)
    list(client.chat.completions.create(model="demo", stream=True, **sampled))
    deadline = time.monotonic() + 10
    while log.read_text().count("\n") < before + 2:  # written after the stream's end
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert isinstance(lines[-1]["replay_info"]["seed"], int)
    assert lines[-1]["replay_info"]["dtype"] == "float32"
    last = tmp_path / "last.jsonl"
    last.write_text("".join(f"{json.dumps(line)}\n" for line in lines[-2:]))
    arguments = ["replay", str(last), "--to", demo, "--region", "us-east-1", "--json"]
    result = CliRunner().invoke(main, [*arguments, "--exact", "--save", str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert (report["requests"], report["exact"], report["facts_that_differ"]) == (2, 2, {})
    assert report["tokens"] == report["recorded_tokens"] > 0
    # Another seed: the answers change.
    for line in lines:
        line["replay_info"] = None
    last.write_text("".join(f"{json.dumps(line)}\n" for line in lines[-2:]))
    result = CliRunner().invoke(main, [*arguments[:-1], "--exact", "--seed", "1"])
    assert result.exit_code == 7, result.output
    assert "of the words, from" in result.output


def test_a_session_is_kept_for_each_conversation(local: Local) -> None:
    environment = {"HF_MODEL_ID": str(DEMO_MODEL), "SAGEMAKER_ENABLE_STATEFUL_SESSIONS": "true"}
    local.deploy("sticky", {"Environment": environment})
    with proxying({"sticky": {"endpoint": "sticky", "sessions": True}}) as proxy:
        url, body = f"{proxy}/v1/chat/completions", GREEDY | {"user": "alice"}
        for _ in range(2):
            assert requests.post(url, json=body, timeout=60).status_code == 200
        headers = {"X-Session-Id": "other"}
        answer = requests.post(url, json=GREEDY | {"stream": True}, headers=headers, timeout=60)
        assert "[DONE]" in answer.text
        own = {"X-Amzn-SageMaker-Session-Id": "not-open"}
        answer = requests.post(url, json=GREEDY, headers=own, timeout=60)
        assert answer.status_code == 400
        assert "session" in answer.json()["error"]["message"]


def test_a_serverless_endpoint_with_an_archive(local: Local, tmp_path: Path) -> None:
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for file in DEMO_MODEL.iterdir():
            tar.add(file, file.name)
    settings = {"MemorySizeInMB": 6144, "MaxConcurrency": 5}
    local.deploy("small", {"ModelDataUrl": f"file://{archive}"}, ServerlessConfig=settings)
    with proxying({"small": {"endpoint": "small"}}) as proxy:
        url = f"{proxy}/v1/chat/completions"
        answer = requests.post(url, json=GREEDY, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 12
        large = GREEDY | {"metadata": {"a": "x" * 4 * 2**20}}
        answer = requests.post(url, json=large, timeout=60)
    assert answer.status_code == 400
    assert "oversize" in answer.json()["error"]["message"]
