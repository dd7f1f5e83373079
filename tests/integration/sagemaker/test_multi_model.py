"""A multi-model endpoint, as SageMaker loads, lists, invokes and unloads its models."""

import json
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support.aws import sagemaker_client as platform
from tests.support.models.user_code import folder_with
from tests.support.servers import DEMO_MODEL, Server, serving, spawn, wait_for

JSON = {"Content-Type": "application/json"}
BODY = json.dumps({"inputs": "Hello", "parameters": {"max_new_tokens": 4}}).encode()
STREAM = json.dumps(
    {"inputs": "Hello", "parameters": {"max_new_tokens": 4}, "stream": True}
).encode()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(
        tmp_path_factory.mktemp("multi") / "log", "", SAGEMAKER_MULTI_MODEL="true"
    ) as server:
        yield server


def _load(server: Server, name: str, folder: Path) -> platform.Answer:
    body = json.dumps({"model_name": name, "url": str(folder)}).encode()
    return platform.call(server.port, "POST", "/models", body, JSON)


def _invoke(server: Server, name: str, body: bytes = BODY, **headers: str) -> platform.Answer:
    return platform.call(server.port, "POST", f"/models/{name}/invoke", body, JSON | headers)


def _names(server: Server) -> list[str]:
    listed = json.loads(platform.call(server.port, "GET", "/models").body)
    return [one["modelName"] for one in listed["models"]]


def _processes(server: Server) -> list[psutil.Process]:
    everyone = psutil.Process(server.process.pid).children(recursive=True)
    return [one for one in everyone if one.is_running() and "serve" in one.cmdline()]


def test_models_are_loaded_listed_invoked_and_unloaded(endpoint: Server, tmp_path: Path) -> None:
    assert platform.ping(endpoint.port) == 200
    assert _names(endpoint) == []
    assert _load(endpoint, "first", DEMO_MODEL).status == 200
    own = folder_with(
        tmp_path / "own",
        "import os\ndef model_fn(d): return 'own'\n"
        # More than a pipe holds, and no text.
        "def predict_fn(data, model):\n os.write(2, b'\\xff' * 99_999)\n return [model, data]",
    )
    assert _load(endpoint, "second", own).status == 200
    assert _names(endpoint) == ["first", "second"]
    shown = json.loads(platform.call(endpoint.port, "GET", "/models/first").body)
    assert shown == {"modelName": "first", "modelUrl": str(DEMO_MODEL)}
    target = {"X-Amzn-SageMaker-Target-Model": "first.tar.gz"}
    forwarded = _invoke(endpoint, "first", **target, **{"X-Amzn-SageMaker-Custom-Attributes": "c"})
    assert json.loads(forwarded.body)[0]["generated_text"].startswith("Hello")
    assert forwarded.headers["X-Amzn-SageMaker-Custom-Attributes"] == "c"
    streamed = _invoke(endpoint, "first", STREAM)
    assert streamed.headers["Content-Type"].startswith("text/event-stream")
    assert streamed.body.endswith(b"\n")
    assert json.loads(_invoke(endpoint, "second", b"5").body) == ["own", 5]
    assert _load(endpoint, "first", DEMO_MODEL).status == 409
    assert _invoke(endpoint, "first", b"{").status == 400
    assert platform.call(endpoint.port, "DELETE", "/models/first").status == 200
    assert len(_processes(endpoint)) == 1
    assert _names(endpoint) == ["second"]
    for answer in (
        _invoke(endpoint, "first"),
        platform.call(endpoint.port, "GET", "/models/first"),
        platform.call(endpoint.port, "DELETE", "/models/first"),
    ):
        assert answer.status == 404
        assert "loaded are: second" in json.loads(answer.body)["error"]
    assert platform.call(endpoint.port, "DELETE", "/models/second").status == 200


def test_a_model_that_dies_takes_nothing_with_it(endpoint: Server) -> None:
    assert _load(endpoint, "mortal", DEMO_MODEL).status == 200
    _processes(endpoint)[0].kill()
    wait_for(lambda: _names(endpoint) == [], 20)
    assert _invoke(endpoint, "mortal").status == 404
    assert platform.ping(endpoint.port) == 200
    assert _load(endpoint, "mortal", DEMO_MODEL).status == 200
    assert platform.call(endpoint.port, "DELETE", "/models/mortal").status == 200


@pytest.mark.parametrize("page", ["x", "-1", "99999999999"])
def test_a_wrong_page_is_refused(endpoint: Server, page: str) -> None:
    answer = platform.call(endpoint.port, "GET", f"/models?next_page_token={page}")
    assert answer.status == 422


def test_a_model_that_cannot_be_loaded_has_a_reason(endpoint: Server, tmp_path: Path) -> None:
    assert _load(endpoint, "none", tmp_path / "none").status == 400
    shutil.copytree(DEMO_MODEL, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").unlink()
    (tmp_path / "broken" / "more.safetensors").symlink_to("nowhere")
    unread = _load(endpoint, "broken", tmp_path / "broken")
    (tmp_path / "broken" / "more.safetensors").unlink()
    broken = _load(endpoint, "broken", tmp_path / "broken")
    assert (unread.status, broken.status) == (400, 400)
    assert "more.safetensors cannot be read" in json.loads(unread.body)["error"]
    assert "tokenizer is missing" in json.loads(broken.body)["error"]
    assert _names(endpoint) == []
    wrong = platform.call(endpoint.port, "POST", "/models", b'{"model_name": 1}', JSON)
    assert wrong.status == 422


def test_a_model_without_room_is_a_507(endpoint: Server, tmp_path: Path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "huge")
    with (tmp_path / "huge" / "more.safetensors").open("wb") as sparse:
        sparse.truncate(4 * 2**40)
    answer = _load(endpoint, "huge", tmp_path / "huge")
    assert answer.status == 507
    assert "MiB are free" in json.loads(answer.body)["error"]


def test_stopping_the_endpoint_stops_its_models(tmp_path: Path) -> None:
    with serving(tmp_path / "log", "", SAGEMAKER_MULTI_MODEL="true") as server:
        assert _load(server, "one", DEMO_MODEL).status == 200
        everyone = psutil.Process(server.process.pid).children(recursive=True)
        assert len(everyone) >= 5
        assert server.stop() == 0
        wait_for(lambda: not any(one.is_running() for one in everyone), 40)


def test_sigterm_lets_requests_of_all_models_finish(tmp_path: Path, endless_model: Path) -> None:
    with serving(tmp_path / "log", "", SAGEMAKER_MULTI_MODEL="true") as server:
        for name in ("one", "two"):
            assert _load(server, name, endless_model).status == 200
        body = {"inputs": "Hello", "parameters": {"max_new_tokens": 400}}
        calls = [
            (name, json.dumps(body | {"stream": streams}).encode())
            for name in ("one", "two")
            for streams in (True, False)
        ]
        with ThreadPoolExecutor(len(calls)) as pool:
            answers = [pool.submit(_invoke, server, name, data) for name, data in calls]
            ports = [_port(process) for process in _processes(server)]
            wait_for(lambda: all(_num_running(port) == 2 for port in ports), 60)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: platform.ping(server.port) == 503, 5)
            assert _invoke(server, "one").status == 503
            for answer in answers:
                assert answer.result().status == 200
                assert b"error" not in answer.result().body
        assert server.process.wait(120) == 0


def _port(process: psutil.Process) -> int:
    return int(process.environ()["PORT"])


def _num_running(port: int) -> float:
    text = platform.call(port, "GET", "/metrics").body.decode()
    [line] = [line for line in text.splitlines() if line.startswith("tgi_batch_current_size ")]
    return float(line.split()[1])


@pytest.mark.parametrize("url", ["x" * 5000, "a\0b"])
def test_a_folder_that_cannot_be_is_refused(endpoint: Server, url: str) -> None:
    assert _load(endpoint, "none", Path(url)).status == 400


def test_a_killed_endpoint_leaves_no_models_behind(tmp_path: Path) -> None:
    server = spawn(tmp_path / "log", "", SAGEMAKER_MULTI_MODEL="true")
    server.wait_ready()
    assert _load(server, "one", DEMO_MODEL).status == 200
    everyone = psutil.Process(server.process.pid).children(recursive=True)
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not any(one.is_running() for one in everyone), 40)
