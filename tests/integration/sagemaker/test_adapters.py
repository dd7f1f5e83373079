"""LoRA adapters over HTTP: at start, at run time, by header, adapter_id and model name."""

import json
import shutil
import socket
import threading
from pathlib import Path

import pytest
import requests

from tests.support.aws import sagemaker_client as platform
from tests.support.servers import DEMO_MODEL, Server, serving, wait_for

HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
PROMPT = "Deep learning is"


def _generate(server: Server, adapter: str | None = None, **headers: str) -> requests.Response:
    parameters = {"max_new_tokens": 10} | ({"adapter_id": adapter} if adapter else {})
    body = {"inputs": PROMPT, "parameters": parameters}
    return requests.post(f"{server.url}/generate", json=body, headers=headers, timeout=60)


def _text_of(server: Server, adapter: str | None = None) -> str:
    return _generate(server, adapter).json()["generated_text"]


def _chat(server: Server, model: str, **headers: str) -> requests.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8,
            "temperature": 0}  # fmt: skip
    url = f"{server.url}/v1/chat/completions"
    return requests.post(url, json=body, headers=headers, timeout=60)


def test_each_way_of_naming_an_adapter_means_the_same(lora: Server) -> None:
    base, red, blue = _text_of(lora), _text_of(lora, "red"), _text_of(lora, "blue")
    assert len({base, red, blue}) == 3
    assert _generate(lora, None, **{HEADER: "red"}).json()["generated_text"] == red
    body = json.dumps({"inputs": PROMPT, "parameters": {"max_new_tokens": 10}}).encode()
    answer = platform.invoke(lora.port, body, adapter_identifier="red")
    assert json.loads(answer.body)[0]["generated_text"] == PROMPT + red
    lines = body + b"\n" + body
    records = platform.invoke(lora.port, lines, "application/jsonlines", adapter_identifier="blue")
    assert [json.loads(line)[0]["generated_text"] for line in records.body.splitlines()] == [
        PROMPT + blue
    ] * 2
    by_model = _chat(lora, "red").json()
    assert by_model["model"] == "red"
    by_header = _chat(lora, "", **{HEADER: "red"}).json()["choices"]
    assert by_header == by_model["choices"] != _chat(lora, "tgi").json()["choices"]
    completion = {"model": "red", "prompt": PROMPT, "max_tokens": 10, "temperature": 0}
    text = requests.post(f"{lora.url}/v1/completions", json=completion, timeout=60).json()
    assert text["choices"][0]["text"] == red


def test_adapters_in_one_batch_do_not_mix(lora: Server) -> None:
    alone = {name: _text_of(lora, name) for name in (None, "red", "blue")}
    steps = lora.metric("engine_steps_total")
    answers: list[tuple[str | None, str]] = []
    names = [None, "red", "blue"] * 4
    threads = [
        threading.Thread(target=lambda name=name: answers.append((name, _text_of(lora, name))))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(said == alone[name] for name, said in answers)
    assert len(answers) == 12
    wait_for(lambda: lora.metric("engine_steps_total") > steps, 5)
    assert lora.metric("engine_steps_total") - steps < 12 * 10 * 0.8


def test_an_unknown_adapter_is_a_404_that_lists_the_known(lora: Server) -> None:
    for refused in (
        _generate(lora, "green"),
        _generate(lora, None, **{HEADER: "green"}),
        _chat(lora, "org/Red"),
    ):
        assert refused.status_code == 404
        assert "red, blue" in refused.text
    streamed = requests.post(
        f"{lora.url}/generate_stream",
        json={"inputs": "a", "parameters": {"adapter_id": "green"}}, timeout=60,
    )  # fmt: skip
    assert streamed.status_code == 404


def test_adapters_come_and_go_while_others_are_served(
    lora: Server, folders: dict[str, Path]
) -> None:
    body = json.dumps({"name": "late-1", "src": str(folders["late"])}).encode()
    headers = {"Content-Type": "application/json", "X-Amzn-SageMaker-Adapter-Alias": "My Late"}
    loaded = platform.call(lora.port, "POST", "/adapters", body, headers)
    assert (loaded.status, loaded.body) == (200, b"Adapter My Late registered")
    assert platform.call(lora.port, "POST", "/adapters", body, headers).status == 409
    listed = requests.get(f"{lora.url}/adapters", timeout=5).json()["adapters"]
    assert [one["name"] for one in listed] == ["red", "blue", "late-1"]
    models = requests.get(f"{lora.url}/v1/models", timeout=5).json()["data"]
    assert [model["id"] for model in models][1:] == ["red", "blue", "late-1"]
    assert models[3]["root"] == str(folders["late"])
    assert models[3]["parent"] == models[0]["root"] == models[0]["id"]
    late = _text_of(lora, "late-1")
    # The engine that takes over after a crash knows it too.
    lora.engine().kill()
    wait_for(lambda: lora.ping().status_code == 503, 10)
    lora.wait_ready()
    assert _text_of(lora, "late-1") == late
    unloaded = platform.call(lora.port, "DELETE", "/adapters/late-1")
    assert unloaded.body == b"Adapter late-1 unregistered"
    assert requests.get(f"{lora.url}/adapters/late-1", timeout=5).status_code == 404
    removed = _chat(lora, "late-1")  # never the base model's answer
    assert removed.status_code == 404
    assert platform.call(lora.port, "DELETE", "/adapters/late-1").status == 404
    assert _generate(lora, "late-1").status_code == 404
    query = f"/adapters?name=late-2&src={folders['late']}&preload=false"
    assert platform.call(lora.port, "POST", query).status == 200
    assert _text_of(lora, "late-2") == late
    assert platform.call(lora.port, "DELETE", "/adapters/late-2").status == 200


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"name": "x"}, "src"),
        ({"name": "x", "src": "/nonexistent"}, "there is no folder"),
        ({"name": "x", "src": str(DEMO_MODEL)}, "adapter_config.json is missing"),
        ({"name": "", "src": "/tmp"}, "name"),
        ({"name": 5, "src": "/tmp"}, "name"),
    ],
)
def test_adapters_that_cannot_be_are_refused(lora: Server, body: dict, reason: str) -> None:
    refused = requests.post(f"{lora.url}/adapters", json=body, timeout=30)
    assert refused.status_code in (400, 422)
    assert reason in refused.json()["error"]


def test_a_server_without_adapters_takes_any_model_name(server: Server) -> None:
    assert _chat(server, "whatever").ok
    assert requests.get(f"{server.url}/adapters", timeout=5).json() == {"adapters": []}


def test_an_adapter_at_start_that_cannot_be_used_ends_it(tmp_path: Path) -> None:
    from tests.support.servers import spawn

    server = spawn(tmp_path / "log", LORA_ADAPTERS="red=/nonexistent")
    assert server.process.wait(120) == 3
    assert "adapter red: `src`: there is no folder" in server.log


def _register(server: Server, name: str, src: str) -> requests.Response:
    body = {"name": name, "src": src}
    return requests.post(f"{server.url}/adapters", json=body, timeout=60)


CONFIGS = {
    "no r": {"r": None},
    "r: text": {"r": "4"},
    "r: 0": {"r": 0},
    "pattern: not a regex": {"rank_pattern": {"(": 1}},
    "pattern: list": {"rank_pattern": [1]},
    "pattern: exponential": {"rank_pattern": {"([a-z_.0-9]+)+$": 4}},
    "alpha: text": {"lora_alpha": "8"},
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS.keys())
def test_an_adapter_with_a_wrong_config_is_refused(
    lora: Server, folders: dict[str, Path], tmp_path: Path, change: dict
) -> None:
    shutil.copytree(folders["late"], tmp_path / "copy")
    path = tmp_path / "copy" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    engine = lora.engine().pid
    refused = _register(lora, "wrong", str(path.parent))
    assert refused.status_code in (400, 422)
    assert "adapter_config.json" in refused.text
    assert lora.engine().pid == engine


@pytest.mark.parametrize(
    "src",
    ["x" * 5000, "x" * 300, "~nobody-here/x", "/etc", "/etc/passwd", "a\0b", ".", ""],
    ids=lambda src: repr(src)[:20],
)
def test_a_source_without_an_adapter_is_refused_and_nothing_ends(lora: Server, src: str) -> None:
    engine = lora.engine().pid
    refused = _register(lora, "wrong", src)
    assert refused.status_code in (400, 422)
    assert len(refused.text) < 1000
    assert lora.engine().pid == engine
    assert _text_of(lora, "red")


def test_streams_go_on_while_an_adapter_is_downloaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:  # which never answers
        settings = {
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hub"),
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}",
        }
        with serving(tmp_path / "log", **settings) as server:
            waiting = threading.Thread(target=_register, args=(server, "slow", "owner/name"))
            waiting.daemon = True
            waiting.start()
            connection, _ = hub.accept()
            for _ in range(3):
                assert _generate(server).ok
            assert waiting.is_alive(), "the download has ended"
            assert server.ping().ok
            connection.close()
