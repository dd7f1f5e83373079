"""The life of the container: loading, ready, overloaded, draining, dead; and clients that leave."""

import json
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest
import requests
from transformers import AutoTokenizer

from container.lifecycle.shutdown import StopSchedule
from tests.support.servers import (
    DEMO_MODEL,
    Server,
    SharedServers,
    serving,
    spawn,
    wait_for,
)

LONG = {"inputs": "Tell me", "parameters": {"max_new_tokens": 50_000}, "stream": True}
SHORT = {"inputs": "Hello", "parameters": {"max_new_tokens": 3}}
# GPUs that this one lacks, TGI's default of CUDA_GRAPHS, what the SDK sends for nothing.
OTHER_MACHINE = {
    "SM_NUM_GPUS": "1", "CUDA_GRAPHS": "1,2,4,8,16,32", "LOG_LEVEL": "debug",
    "SAGEMAKER_CONTAINER_LOG_LEVEL": "20", "SAGEMAKER_REGION": "x",
    "SAGEMAKER_PROGRAM": "", "SAGEMAKER_SUBMIT_DIRECTORY": "",
}  # fmt: skip


class LiveStream(threading.Thread):
    """A client that reads a stream in the background; `lines` grows while it runs."""

    def __init__(self, server: Server, body: dict, path: str = "/generate_stream") -> None:
        super().__init__(daemon=True)
        self.url = f"{server.url}{path}"
        self.body = body
        self.lines: list[str] = []
        self.ended_at = 0.0
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            with requests.post(self.url, json=self.body, stream=True, timeout=60) as response:
                for line in response.iter_lines(chunk_size=1):
                    if line:
                        self.lines.append(line.decode())
        except Exception as error:
            self.failure = error
        self.ended_at = time.monotonic()

    @property
    def last(self) -> dict:
        return json.loads(self.lines[-1].removeprefix("data: "))


def _streams(server: Server, count: int, **changes: object) -> list[LiveStream]:
    started = [LiveStream(server, LONG | changes) for _ in range(count)]
    for stream in started:
        stream.start()
    wait_for(lambda: all(stream.lines for stream in started), 60, lambda: server.log)
    return started


def test_a_killed_engine_fails_streams_and_restarts(
    shared_servers: SharedServers, endless_model: Path
) -> None:
    server = shared_servers.get(endless_model)
    chat = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    streams = [*_streams(server, 4), LiveStream(server, chat, "/v1/chat/completions")]
    streams[-1].start()
    wait_for(lambda: bool(streams[-1].lines), 30)
    server.engine().kill()
    killed_at = time.monotonic()
    wait_for(lambda: server.ping().status_code == 503, 5)
    for stream in streams:
        stream.join(10)
        assert stream.failure is None
        assert stream.ended_at - killed_at < 5
    assert all(stream.last["error_type"] == "unavailable" for stream in streams[:-1])
    assert "error" in json.loads(streams[-1].lines[-2].removeprefix("data: "))
    assert streams[-1].lines[-1] == "data: [DONE]"
    server.wait_ready()
    answer = requests.post(f"{server.url}/generate", json=SHORT, timeout=60)
    assert answer.status_code == 200


def test_an_engine_that_keeps_dying_ends_the_container(tmp_path: Path) -> None:
    with serving(tmp_path / "log") as server:
        for _ in range(4):
            assert server.process.poll() is None
            engine = server.engine()
            engine.kill()
            wait_for(
                lambda old=engine: (
                    server.process.poll() is not None or _other_engine(server, old.pid)
                ),
                30,
            )
        assert server.process.wait(120) == 4


def test_a_stopped_engine_is_replaced_and_its_streams_end(
    shared_servers: SharedServers, endless_model: Path
) -> None:
    server = shared_servers.get(endless_model, HEARTBEAT_TIMEOUT="2")
    streams = _streams(server, 2)
    engine = server.engine()
    engine.suspend()
    wait_for(lambda: _other_engine(server, engine.pid), 30, lambda: server.log)
    for stream in streams:
        stream.join(30)
        assert stream.failure is None
        assert stream.last["error_type"] == "unavailable"
    assert "HEARTBEAT_TIMEOUT" in server.log
    server.wait_ready()
    assert requests.post(f"{server.url}/generate", json=SHORT, timeout=60).ok


def _other_engine(server: Server, pid: int) -> bool:
    try:
        return server.engine().pid != pid
    except StopIteration:
        return False


def test_a_killed_frontend_is_replaced_and_its_requests_aborted(
    shared_servers: SharedServers, endless_model: Path
) -> None:
    server = shared_servers.get(endless_model)
    _streams(server, 2)
    logged = len(server.log)
    [victim] = server.frontends()
    victim.kill()
    wait_for(lambda: victim not in server.frontends(), 20)
    wait_for(lambda: len(server.frontends()) == 1, 20)
    lines = server.log[logged:].splitlines()
    assert any("SIGKILL" in line for line in lines)
    assert all(isinstance(json.loads(line), dict) for line in lines)
    wait_for(lambda: server.metric("tgi_batch_current_size") == 0, 20)
    answer = requests.post(f"{server.url}/generate", json=SHORT, timeout=60)
    assert answer.ok, answer.text + server.log


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_gunicorns_master_is_replaced_and_streams_go_on(
    shared_servers: SharedServers, endless_model: Path, number: signal.Signals
) -> None:
    server = shared_servers.get(endless_model, HEARTBEAT_TIMEOUT="2")
    engine = server.engine()
    streams = _streams(server, 2, parameters={"max_new_tokens": 2000})
    [worker] = server.frontends()
    master = worker.parent()
    master.send_signal(number)
    wait_for(lambda: not worker.is_running(), 60, lambda: server.log)
    server.wait_ready()
    for stream in streams:
        stream.join(60)
        assert stream.failure is None
        assert stream.last["generated_text"] is not None
    assert not master.is_running()
    assert server.engine() == engine
    assert requests.post(f"{server.url}/generate", json=SHORT, timeout=60).ok
    assert server.stop() == 0


def test_a_disconnect_frees_the_blocks(shared_servers: SharedServers, endless_model: Path) -> None:
    server = shared_servers.get(endless_model)
    aborted = server.metric("tgi_request_aborted")
    url = f"{server.url}/generate_stream"
    with requests.post(url, json=LONG, stream=True, timeout=60) as response:
        assert response.status_code == 200, response.text
        wait_for(lambda: server.metric("engine_blocks_used") > 0, 20)
    wait_for(lambda: server.metric("engine_blocks_used") == 0, 20)

    body = json.dumps(LONG | {"stream": False}).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(head.encode() + body)
        wait_for(lambda: server.metric("engine_blocks_used") > 0, 20, lambda: server.log)
    wait_for(lambda: server.metric("engine_blocks_used") == 0, 20)
    wait_for(lambda: server.metric("tgi_request_aborted") == aborted + 2, 20)


def test_sigterm_lets_streams_finish_and_exits_with_0(
    shared_servers: SharedServers, endless_model: Path
) -> None:
    server = shared_servers.get(endless_model)
    parameters = {"max_new_tokens": 300}
    streams = _streams(server, 4, parameters=parameters)
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: server.ping().status_code == 503, 5)
    refused = requests.post(f"{server.url}/generate", json=SHORT, timeout=10)
    assert refused.status_code == 503
    assert server.process.wait(120) == 0
    for stream in streams:
        stream.join(10)
        assert stream.failure is None
        assert stream.last["generated_text"] is not None


def test_requests_at_the_limit_and_at_the_end_of_a_drain(
    tmp_path: Path, endless_model: Path
) -> None:
    settings = {"GRACEFUL_TERMINATION_TIMEOUT": "1", "MAX_CONCURRENT_REQUESTS": "2"}
    with serving(tmp_path / "log", endless_model, **settings) as server:
        streams = _streams(server, 2)
        for path, body in (
            ("/generate", SHORT),
            ("/generate_stream", SHORT),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ):
            refused = requests.post(f"{server.url}{path}", json=body, timeout=30)
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
        assert server.ping().status_code == 200
        assert server.stop() == 0
        for stream in streams:
            stream.join(10)
            assert stream.failure is None
            assert "error" in stream.last
            assert stream.last["error_type"] == "unavailable"


def test_hung_processes_do_not_delay_the_exit(tmp_path: Path) -> None:
    drain_s = 1
    server = spawn(tmp_path / "log", GRACEFUL_TERMINATION_TIMEOUT=str(drain_s))
    server.wait_ready()
    everyone = psutil.Process(server.process.pid).children(recursive=True)
    for process in everyone:
        process.suspend()
    signalled = time.monotonic()
    server.process.terminate()
    assert server.process.wait(120) == 0
    assert time.monotonic() - signalled < StopSchedule.starting_at(0.0, drain_s).end_at + 1
    wait_for(lambda: not any(process.is_running() for process in everyone), 10)
    assert "engine: still running after the drain, killed" in server.log


def test_ping_and_sigterm_while_the_model_loads(tmp_path: Path) -> None:
    server = spawn(tmp_path / "log")
    try:
        wait_for(lambda: _accepts(server.port), 60, lambda: server.log)
        # The port is open before a frontend has started, so the first answer may take its start.
        first = requests.get(f"{server.url}/ping", timeout=60)
        assert first.status_code == 503
        assert first.json()["error"]
        assert first.json()["error_type"] == "healthcheck"
        early = requests.post(f"{server.url}/invocations", json=SHORT, timeout=30)
        assert early.status_code == 503
        assert early.headers["Retry-After"]
    finally:
        assert server.stop() == 0


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_supervisor_killed_at_start_leaves_no_process(tmp_path: Path) -> None:
    server = spawn(tmp_path / "log")
    wait_for(lambda: len(psutil.Process(server.process.pid).children()) == 2, 60)
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not any(child.is_running() for child in children), 30)


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="for machines without a GPU")
def test_the_environment_of_another_machine_starts_and_is_named(
    shared_servers: SharedServers,
) -> None:
    server = shared_servers.get(**OTHER_MACHINE)
    warnings = [line for line in server.log.splitlines() if "SM_NUM_GPUS=1, but" in line]
    assert len(warnings) == 1
    assert "set SM_NUM_GPUS=0" in warnings[0]
    assert "wins: SAGEMAKER_CONTAINER_LOG_LEVEL" in server.log
    assert "MISSING" not in server.log  # no user code is named


def test_a_killed_supervisor_takes_everything_with_it(shared_servers: SharedServers) -> None:
    server = shared_servers.get(**OTHER_MACHINE)
    everyone = [server.engine(), *server.frontends()]
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not any(process.is_running() for process in everyone), 20)
    wait_for(lambda: not _accepts(server.port), 20)


def test_only_the_temporary_folder_is_written(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with serving(tmp_path / "log", TMPDIR=str(temporary), HOME="/nonexistent") as server:
        requests.post(f"{server.url}/generate", json=SHORT, timeout=60).raise_for_status()
        assert _own_folders(temporary)
        server.stop()
    assert not _own_folders(temporary)


def _own_folders(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith("container-")]


@pytest.fixture(scope="module")
def odd_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo model with a token that it lacks, and a template that loops if told to."""
    folder = tmp_path_factory.mktemp("odd") / "model"
    shutil.copytree(DEMO_MODEL, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0].content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999)"
        " %}{% endfor %}{% endfor %}{% endif %}{% if messages[0].content == 'center' %}"
        "{{ 'a'.center(2000000000) }}{% endif %}{{ messages[0].content }}"
    )
    return folder


def test_a_token_that_the_model_lacks_is_the_clients_fault(
    shared_servers: SharedServers, odd_model: Path
) -> None:
    server = shared_servers.get(odd_model)
    body = {"inputs": "hi <extra>", "parameters": {"max_new_tokens": 2}}
    refused = requests.post(f"{server.url}/generate", json=body, timeout=30)
    assert refused.status_code == 422
    assert "a token that the model does not have" in refused.json()["error"]
    assert server.ping().status_code == 200


def test_an_endless_template_fails_its_request_only(
    shared_servers: SharedServers, odd_model: Path
) -> None:
    server = shared_servers.get(odd_model)
    url = f"{server.url}/v1/chat/completions"
    looping = LiveStream(server, _chat("loop"), "/v1/chat/completions")
    looping.start()
    for _ in range(20):
        assert server.ping().elapsed.total_seconds() < 1
    assert requests.post(url, json=_chat("Hi"), timeout=60).status_code == 200
    looping.join(60)
    assert "processor time" in "".join(looping.lines)
    refused = requests.post(url, json=_chat("center"), timeout=60)
    assert refused.status_code == 400
    assert "memory" in refused.json()["error"]["message"]
    assert requests.post(url, json=_chat("Hi"), timeout=60).status_code == 200


def test_a_deleted_model_is_served_on_even_by_a_new_frontend(
    shared_servers: SharedServers, odd_model: Path
) -> None:
    server = shared_servers.get(odd_model)
    logged = len(server.log)
    shutil.rmtree(odd_model)
    for _ in range(2):
        assert server.ping().status_code == 200
        for path, body in (("/generate", SHORT), ("/v1/chat/completions", _chat("Hi"))):
            answer = requests.post(f"{server.url}{path}", json=body, timeout=60)
            assert answer.status_code == 200, answer.text
        [frontend] = server.frontends()
        frontend.kill()
        wait_for(lambda pid=frontend.pid: pid not in [p.pid for p in server.frontends()], 20)
        server.wait_ready()
    assert "Traceback" not in server.log[logged:]
    assert server.stop() == 0  # its folder is gone, so no other test can use it


def _chat(content: str) -> dict:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 3}


def test_a_replaced_frontend_accepts_once_ready(
    shared_servers: SharedServers,
) -> None:
    server = shared_servers.get(WORKERS="2")
    victim = server.frontends()[0]
    victim.kill()
    statuses = []
    answered_by_both_at = time.monotonic() + 60
    while time.monotonic() < answered_by_both_at:
        if len(server.frontends()) == 2:
            answered_by_both_at = min(answered_by_both_at, time.monotonic() + 3)
        try:
            # On a busy machine the other worker may not have started yet: the connection waits.
            statuses.append(server.ping(timeout=60).status_code)
        except requests.ConnectionError:  # the victim had just accepted it
            time.sleep(0.01)
    assert set(statuses) == {200}
    assert len(server.frontends()) == 2
