"""DATA_PARALLEL: two engines behind one port."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from transformers import AutoModelForCausalLM

from tests.support.models import adapters
from tests.support.servers import DEMO_MODEL, Server, serving, wait_for

TWO = {"DATA_PARALLEL": "2", "MAX_BATCH_TOTAL_TOKENS": "4096"}
BLOCKS = 2 * 4096 // 32
LONG_TEXT = "What is deep learning? " * 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("copies")
    with serving(folder / "log", **TWO) as ready:
        _wait_for_both(ready)
        yield ready
        assert ready.stop() == 0


def _wait_for_both(server: Server) -> None:
    wait_for(lambda: server.metric("engine_blocks_total") == BLOCKS, 60, lambda: server.log)


def _engines(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if "engine" in child.cmdline()]


def _has_left(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _generate(server: Server, text: str, **parameters: object) -> requests.Response:
    body = {"inputs": text, "parameters": {"max_new_tokens": 8} | parameters}
    return requests.post(f"{server.url}/generate", json=body, timeout=60)


def test_both_copies_work_and_give_the_same_answers(server: Server) -> None:
    assert len(_engines(server)) == 2
    assert requests.get(f"{server.url}/info", timeout=5).json()["data_parallel"] == 2
    before = [sum(one.cpu_times()[:2]) for one in _engines(server)]
    answers: list[str] = []

    def ask(index: int) -> None:
        answer = _generate(server, "What is deep learning?", max_new_tokens=60)
        answers.append(answer.json()["generated_text"])

    count = 60
    threads = [threading.Thread(target=ask, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == count
    assert len(set(answers)) == 1
    after = [sum(one.cpu_times()[:2]) for one in _engines(server)]
    assert all(new - old > 0.05 for old, new in zip(before, after, strict=True))


def test_a_known_prefix_is_computed_once(server: Server) -> None:
    # A status is up to a quarter of a second old; one with running requests sends this elsewhere.
    wait_for(lambda: server.metric("tgi_batch_current_size") == 0, 10, lambda: server.log)
    body = {"model": "tgi", "messages": [{"role": "user", "content": LONG_TEXT}], "max_tokens": 4}
    cached = []
    for _ in range(4):
        answer = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == 0
    assert min(cached[1:]) > 100


def test_prompts_of_one_request_may_use_several_replicas(server: Server) -> None:
    prompts = ["One", "Two", "Three", "Four"]
    body = {"model": "tgi", "prompt": prompts, "max_tokens": 5, "temperature": 0}
    answer = requests.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    alone = [
        requests.post(
            f"{server.url}/v1/completions", json=body | {"prompt": prompt}, timeout=60
        ).json()["choices"][0]["text"]
        for prompt in prompts
    ]
    assert [choice["text"] for choice in answer["choices"]] == alone


def test_a_replica_serves_while_another_restarts(server: Server) -> None:
    _engines(server)[0].kill()
    wait_for(lambda: "engine 0: died (signal 9)" in server.log, 10)
    for _ in range(10):
        assert server.ping().status_code == 200
        assert _generate(server, "Hello").status_code == 200
    _wait_for_both(server)


def test_copies_drain_at_the_same_time(tmp_path: Path, endless_model: Path) -> None:
    settings = TWO | {"GRACEFUL_TERMINATION_TIMEOUT": "3", "MAX_BATCH_TOTAL_TOKENS": "200000"}
    with serving(tmp_path / "log", endless_model, **settings) as server:
        wait_for(lambda: server.metric("engine_blocks_total") == 2 * 6250, 60, lambda: server.log)
        body = {"inputs": "Hi", "parameters": {"max_new_tokens": 50_000}}
        answers: list[requests.Response] = []

        def ask() -> None:
            answers.append(requests.post(f"{server.url}/generate", json=body, timeout=60))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: server.metric("tgi_batch_current_size") == 4, 30)
        engines = _engines(server)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.ping().status_code == 503, 10)
        wait_for(lambda: any(map(_has_left, engines)), 30)
        # One after the other they would leave a whole drain apart.
        assert wait_for(lambda: all(map(_has_left, engines)), 30) < 2.5
        for thread in threads:
            thread.join()
        assert server.process.wait(120) == 0
    assert [answer.status_code for answer in answers] == [503] * 4
    assert "is killed" not in server.log


def test_adapters_are_known_to_all_copies(server: Server, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
    adapter = adapters.save(tmp_path / "adapter", model, seed=1)
    url = f"{server.url}/adapters"
    loaded = requests.post(url, json={"name": "one", "src": str(adapter)}, timeout=60)
    assert loaded.ok, loaded.text
    assert requests.post(url, json={"name": "one", "src": str(adapter)}).status_code == 409
    for _ in range(4):  # both copies get some
        assert _generate(server, "Hello", adapter_id="one").ok
    assert requests.delete(f"{url}/one", timeout=60).ok
    assert requests.delete(f"{url}/one", timeout=60).status_code == 404
    assert _generate(server, "Hello", adapter_id="one").status_code == 404
