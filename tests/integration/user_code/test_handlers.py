"""User code served by real processes: streams, crashes, hangs, and the engine as its model."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.support.models.user_code import folder_with, write_wheel
from tests.support.servers import ROOT, Server, serving, spawn, wait_for

PROGRAM = """
import os, signal, time
class Wordless(BaseException):
    def __str__(self):
        raise RuntimeError("no words")
def model_fn(model_dir):
    return {"pid": os.getpid(), "dir": model_dir}
def predict_fn(data, model):
    do = data["do"]
    if do == "echo":
        return data
    if do == "pid":
        return model["pid"]
    if do == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if do == "exit":
        os._exit(7)
    if do == "wordless":
        raise Wordless
    if do == "surrogate":
        raise BaseException("\\ud800")
    if do == "leave":
        raise SystemExit("bye")
    if do == "hang":
        time.sleep(1000)
    if do == "deadlock":
        import ctypes
        ctypes.PyDLL(None).sleep(1000)  # holds the interpreter's lock
    if do == "recurse":
        import sys
        sys.setrecursionlimit(10**9)
        return deeper(0)
    if do == "eat":
        held = []
        while True:
            held.append(b"x" * 2**24)
    if do == "stream":
        return parts(data.get("count", 3), data.get("fail_at"))
    return {"large": "x" * data["size"]}
def deeper(number):
    return deeper(number + 1)
def parts(count, fail_at):
    for number in range(count):
        if number == fail_at:
            raise RuntimeError("in the middle")
        time.sleep(0.05)
        yield {"part": number}
"""


def _ask(server: Server, timeout: float = 60, **body: object) -> requests.Response:
    return requests.post(f"{server.url}/invocations", json=body, timeout=timeout)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of user code that loads its own model, without an engine."""
    folder = tmp_path_factory.mktemp("own")
    model = folder_with(folder / "model", PROGRAM)
    limits = {"HANDLER_TIMEOUT": "2", "HANDLER_MEMORY": "500", "PAYLOAD_LIMIT": "30000000"}
    with serving(folder / "log", model, **limits) as server:
        yield server


def test_user_code_answers_and_no_engine_is_started(own: Server) -> None:
    assert _ask(own, do="echo", deep=["é"]).json() == {"do": "echo", "deep": ["é"]}
    children = psutil.Process(own.process.pid).children()
    assert sorted(" ".join(child.cmdline()[2:4]) for child in children) == [
        "container handler",
        "gunicorn -c",
    ]
    refused = requests.post(f"{own.url}/generate", json={"inputs": "a"}, timeout=10)
    assert refused.status_code == 404
    assert "no language model" in refused.json()["error"]
    assert requests.get(f"{own.url}/metrics", timeout=5).ok


def test_a_stream_arrives_part_by_part(own: Server) -> None:
    with requests.post(
        f"{own.url}/invocations", json={"do": "stream"}, stream=True, timeout=30
    ) as response:
        assert response.headers["Content-Type"] == "application/jsonlines"
        chunks = [chunk for chunk in response.iter_content(None) if chunk.strip()]
    assert chunks == [b'{"part":0}\n', b'{"part":1}\n', b'{"part":2}\n']


def test_a_failure_in_mid_stream_is_a_last_line(own: Server) -> None:
    lines = _ask(own, do="stream", fail_at=1).text.splitlines()
    assert json.loads(lines[0]) == {"part": 0}
    assert json.loads(lines[-1])["error_type"] == "handler"
    first = _ask(own, do="stream", fail_at=0)
    assert first.status_code == 500
    assert first.json()["error"] == "user code failed: RuntimeError: in the middle"


def test_large_bodies_pass(own: Server) -> None:
    answer = _ask(own, do="large", size=5_000_000)
    assert len(answer.json()["large"]) == 5_000_000
    assert _ask(own, do="echo", text="x" * 6_000_000).ok


@pytest.mark.parametrize(("do", "told"), [("crash", "signal 11"), ("exit", "exit code 7")])
def test_a_crash_fails_its_own_request_only(own: Server, do: str, told: str) -> None:
    before = _ask(own, do="pid").json()
    failed = _ask(own, do=do)
    assert failed.status_code == 500
    assert told in failed.json()["error"]
    # Until another process is there, requests are refused with 503.
    wait_for(lambda: _ask(own, do="pid").ok, 20)
    assert _ask(own, do="pid").json() != before
    assert own.process.poll() is None


def test_system_exit_in_user_code_ends_nothing(own: Server) -> None:
    before = _ask(own, do="pid").json()
    assert "SystemExit" in _ask(own, do="leave").json()["error"]
    assert _ask(own, do="pid").json() == before


def test_endless_recursion_is_an_error(own: Server) -> None:
    before = _ask(own, do="pid").json()
    failed = _ask(own, do="recurse")
    assert failed.status_code == 500
    assert "RecursionError" in failed.json()["error"]
    assert "recursion limit of 1000000000; it is bounded to 100000" in own.log
    assert _ask(own, do="pid").json() == before


def test_a_process_over_its_memory_limit_is_replaced(own: Server) -> None:
    failed = _ask(own, do="eat")
    assert failed.status_code in (500, 504)  # on a slow machine HANDLER_TIMEOUT comes first
    assert re.search("HANDLER_(MEMORY|TIMEOUT)", failed.json()["error"])
    wait_for(lambda: _ask(own, do="pid").ok, 20)


@pytest.mark.parametrize("do", ["wordless", "surrogate"])
def test_an_exception_without_a_message_is_an_error(own: Server, do: str) -> None:
    before = _ask(own, do="pid").json()
    failed = _ask(own, timeout=20, do=do)
    assert failed.status_code == 500
    assert failed.json()["error"].startswith("user code failed: ")
    assert _ask(own, do="pid").json() == before


@pytest.mark.parametrize("do", ["hang", "deadlock"])
def test_a_hang_ends_at_the_time_limit(own: Server, do: str) -> None:
    answers: dict[str, requests.Response] = {}

    def ask(name: str, **body: object) -> None:
        answers[name] = _ask(own, **body)

    hanging = threading.Thread(target=ask, args=("hang",), kwargs={"do": do})
    hanging.start()
    time.sleep(0.3)
    assert requests.get(f"{own.url}/metrics", timeout=2).ok
    behind = threading.Thread(target=ask, args=("behind",), kwargs={"do": "echo"})
    behind.start()
    hanging.join(30)
    behind.join(30)
    wait_for(lambda: own.ping().ok, 20)
    assert answers["hang"].status_code == 504
    assert "HANDLER_TIMEOUT" in answers["hang"].json()["error"]
    assert answers["behind"].json() == {"do": "echo"}
    assert "user_code" in own.log or "predict_fn" in own.log  # where it hung


def test_invocations_over_the_limit_get_429(tmp_path: Path) -> None:
    program = """
import threading, time
inside = []
def model_fn(model_dir): return None
def predict_fn(data, model):
    inside.append(1)
    most = len(inside)
    time.sleep(0.3)
    inside.pop()
    return most
"""
    folder = folder_with(tmp_path / "model", program)
    with serving(tmp_path / "log", folder, MAX_CONCURRENT_REQUESTS="4") as server:
        answers: list[requests.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(_ask(server, a=1))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(answer.status_code for answer in answers) == [200] * 4 + [429] * 4
        assert {answer.json() for answer in answers if answer.ok} == {1}
        assert all(answer.headers["Retry-After"] for answer in answers if not answer.ok)


def test_sigterm_lets_an_invocation_finish(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", PROGRAM)
    with serving(tmp_path / "log", folder) as server:
        answers: list[requests.Response] = []
        running = threading.Thread(
            target=lambda: answers.append(_ask(server, do="stream", count=40))
        )
        running.start()
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.ping().status_code == 503, 5)
        assert _ask(server, do="echo").status_code == 503
        assert server.process.wait(120) == 0
        running.join(10)
        assert len(answers[0].text.splitlines()) == 40


def test_a_killed_supervisor_takes_handlers_with_it(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", PROGRAM)
    server = spawn(tmp_path / "log", folder)
    server.wait_ready()
    everyone = psutil.Process(server.process.pid).children(recursive=True)
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not any(process.is_running() for process in everyone), 20)


def test_a_killed_handler_server_takes_its_workers_with_it(own: Server) -> None:
    hanging = threading.Thread(target=_ask, args=(own,), kwargs={"do": "hang"})
    hanging.start()
    time.sleep(0.5)
    children = psutil.Process(own.process.pid).children()
    [handler] = [child for child in children if "handler" in child.cmdline()]
    workers = handler.children()
    handler.kill()
    hanging.join(30)
    assert not hanging.is_alive()
    wait_for(lambda: not any(worker.is_running() for worker in workers), 20)
    wait_for(lambda: own.ping().status_code == 200, 60)


def test_code_that_cannot_be_loaded_ends_the_start(tmp_path: Path) -> None:
    programs = {
        "no weights here": "def model_fn(d): raise OSError('no weights here')",
        "nonexistent_module": "import nonexistent_module\ndef model_fn(d): pass",
        "not valid Python": "def model_fn(d)\n    pass",
        "while it loaded, several times": "import os\ndef model_fn(d): os._exit(1)",
    }
    started = [
        spawn(tmp_path / f"{n}.log", folder_with(tmp_path / f"model-{n}", program))
        for n, program in enumerate(programs.values())
    ]
    for server, reason in zip(started, programs, strict=True):
        assert server.process.wait(120) == 3, reason
        assert reason in server.log


def test_requirements_come_from_a_folder_of_wheels(tmp_path: Path) -> None:
    program = "import own_greeting\ndef model_fn(d): return own_greeting.WORD\n"
    program += "def predict_fn(data, model): return model"
    folder = folder_with(tmp_path / "model", program)
    (folder / "code" / "requirements.txt").write_text("own-greeting==1.0\n")
    write_wheel(folder / "code" / "wheels", "own_greeting", "WORD = 'hello'\n")
    try:
        with serving(tmp_path / "log", folder) as server:
            assert _ask(server, a=1).json() == "hello"
    finally:
        pip = [sys.executable, "-m", "pip", "uninstall", "-y", "-q", "own-greeting"]
        subprocess.run(pip, check=True)


def test_failed_requirements_end_the_start_with_pips_error(
    tmp_path: Path,
) -> None:
    folder = folder_with(tmp_path / "model", "def model_fn(d): pass")
    (folder / "code" / "requirements.txt").write_text("no-such-package==1.0\n")
    (folder / "code" / "wheels").mkdir()
    server = spawn(tmp_path / "log", folder)
    assert server.process.wait(120) == 3
    assert "No matching distribution found for no-such-package" in server.log


def test_requirements_do_not_replace_the_servers_packages(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", "def model_fn(d): pass")
    (folder / "code" / "requirements.txt").write_text("flask==1.0\n")
    write_wheel(folder / "code" / "wheels", "flask", "")
    server = spawn(tmp_path / "log", folder)
    assert server.process.wait(120) == 3
    assert "flask" in server.log.lower()
    assert "ResolutionImpossible" in server.log
    assert "user requested (constraint) flask==" in server.log.lower()


def test_code_named_and_missing_is_a_loud_warning(tmp_path: Path) -> None:
    with serving(
        tmp_path / "log",
        SAGEMAKER_PROGRAM="inference.py",
        SAGEMAKER_SUBMIT_DIRECTORY="file://code",
    ) as server:
        assert "inference.py is named as user code and is MISSING" in server.log
        assert requests.post(
            f"{server.url}/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 1}},
            timeout=60,
        ).ok  # fmt: skip


def test_the_example_in_code_streams_an_answer(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", "", with_model=True)
    shutil.copytree(ROOT / "code", folder / "code", dirs_exist_ok=True)
    with serving(tmp_path / "log", folder) as server:
        fields = {"question": "What is deep learning?", "max_tokens": 20}
        answer = requests.post(f"{server.url}/invocations", json=fields, timeout=60)
        assert "earning" in answer.text
        assert answer.text.endswith("\n")
        refused = requests.post(f"{server.url}/invocations", json={}, timeout=60)
        assert refused.status_code == 400
        assert "question" in refused.json()["error"]
