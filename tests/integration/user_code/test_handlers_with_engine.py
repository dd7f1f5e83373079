"""User code without a model_fn, which calls the engine."""

import json
import threading
import time
from collections.abc import Iterator

import pytest
import requests

from tests.support.models.user_code import folder_with
from tests.support.servers import Server, serving

ENGINE_PROGRAM = """
import json
def input_fn(body, content_type):
    return json.loads(body)
def predict_fn(data, model, context):
    how = data.pop("how")
    if how == "headers":
        return context.get_all_request_header()
    if how == "generate":
        return model.generate(data["prompt"], max_new_tokens=data["n"])
    if how == "chat":
        return model.chat([{"role": "user", "content": data["prompt"]}], max_tokens=data["n"])
    if how == "stream":
        return model.stream(data["prompt"], max_new_tokens=data["n"])
    return model(data)
"""


@pytest.fixture(scope="module")
def with_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("engine")
    model = folder_with(folder / "model", ENGINE_PROGRAM, with_model=True)
    with serving(folder / "log", model, API_KEY="k") as server:
        yield server


KEY = {"Authorization": "Bearer k"}


def _send_body(server: Server, **body: object) -> requests.Response:
    return requests.post(f"{server.url}/invocations", json=body, headers=KEY, timeout=60)


def test_a_handler_without_model_fn_is_given_the_engine(with_engine: Server) -> None:
    direct = requests.post(
        f"{with_engine.url}/generate", headers=KEY, timeout=60,
        json={"inputs": "Deep learning is", "parameters": {"max_new_tokens": 12}},
    ).json()["generated_text"]  # fmt: skip
    fields = {"prompt": "Deep learning is", "n": 12}
    assert _send_body(with_engine, how="generate", **fields).json() == direct
    streamed = _send_body(with_engine, how="stream", **fields)
    assert streamed.text.rstrip("\n") == direct
    assert streamed.headers["Content-Type"].startswith("text/plain")
    assert _send_body(with_engine, how="chat", **fields).json()
    whole = {"inputs": "Deep learning is", "parameters": {"max_new_tokens": 12}}
    assert _send_body(with_engine, how="body", **whole).json()[0]["generated_text"].endswith(direct)
    events = _send_body(with_engine, how="body", stream=True, **whole).text.splitlines()
    assert json.loads(events[-1])["generated_text"].endswith(direct)


@pytest.mark.parametrize("header", [KEY, {"x-api-key": "k"}], ids=["bearer", "x-api-key"])
def test_user_code_does_not_see_the_servers_key(
    with_engine: Server, header: dict[str, str]
) -> None:
    answer = requests.post(
        f"{with_engine.url}/invocations", json={"how": "headers"}, timeout=60,
        headers=header | {"X-Kept": "yes"},
    )  # fmt: skip
    received = answer.json()
    assert received["x-kept"] == "yes"
    assert not {"authorization", "x-api-key"} & received.keys()


def test_errors_of_the_engine_keep_their_status(with_engine: Server) -> None:
    refused = _send_body(with_engine, how="generate", prompt="a", n=-1)
    assert refused.status_code == 422
    assert "max_new_tokens" in refused.json()["error"]
    early = _send_body(with_engine, how="stream", prompt="a", n=-1)
    assert early.status_code == 422


def test_invocations_share_the_engines_batches(with_engine: Server) -> None:
    before = with_engine.metric("engine_steps_total")
    fields = {"how": "generate", "prompt": "Tell me a long story", "n": 60}
    threads = [
        threading.Thread(target=_send_body, args=(with_engine,), kwargs=fields) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    time.sleep(0.5)  # a status comes four times a second
    assert with_engine.metric("engine_steps_total") - before < 8 * 60 / 2
