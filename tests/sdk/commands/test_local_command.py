"""`python -m sagemaker_deploy local`, as a person starts it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from tests.support.aws.local_sagemaker import DEMO_MODEL, FAKE_SERVER, REAL_SERVER, ROOT, client
from tests.support.aws.outside import Trap
from tests.support.servers import wait_for


def _start(
    tmp_path: Path, *options: str, variables: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "sagemaker_deploy", "local", "--port", "0", "--json"]
    return subprocess.Popen(
        [*argv, "--logs", str(tmp_path), *options], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **(variables or {})},
    )  # fmt: skip


def _descendants(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def _all_exited(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != "zombie" for process in processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_model_server_ends_with_the_command(tmp_path: Path, number: int, outside: Trap) -> None:
    outside.asked.clear()
    options = ["--model", str(DEMO_MODEL), "--env", "DTYPE=float32"]
    options += ["--server-command", " ".join(REAL_SERVER)]
    with _start(tmp_path, *options, variables=outside.variables()) as process:
        assert process.stdout
        listening = json.loads(process.stdout.readline())
        runtime = client("sagemaker-runtime", listening["url"])
        body = json.dumps({"inputs": "Hello", "parameters": {"max_new_tokens": 2}})
        runtime.invoke_endpoint(EndpointName="local", ContentType="application/json", Body=body)
        started = _descendants(process)
        assert len(started) >= 4  # leash, supervisor, engine, gunicorn
        os.kill(process.pid, number)
        wait_for(lambda: _all_exited(started), 40)
    assert outside.asked == []  # nothing has left this machine


def test_leaving_while_the_model_loads_stops_it(tmp_path: Path) -> None:
    options = ["--model", str(DEMO_MODEL), "--server-command", " ".join(REAL_SERVER)]
    with _start(tmp_path, *options) as process:
        wait_for(lambda: len(_descendants(process)) >= 2, 20)
        started = _descendants(process)
        process.terminate()
        assert process.wait(40) == 0
        wait_for(lambda: _all_exited(started), 10)


def test_a_model_that_does_not_load_is_one_error(tmp_path: Path) -> None:
    with _start(
        tmp_path, "--model", "/no/such/folder", "--server-command", " ".join(REAL_SERVER)
    ) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 6
    assert out == ""


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with _start(tmp_path, "--server-command", " ".join(FAKE_SERVER)) as first:
        assert first.stdout
        port = json.loads(first.stdout.readline())["url"].rpartition(":")[2]
        second = subprocess.run(
            [sys.executable, "-m", "sagemaker_deploy", "local", "--port", port],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        first.terminate()
    assert second.returncode == 2
    assert second.stderr.strip().splitlines()[-1] == f"error: --port {port}: cannot listen there"


def test_a_library_that_is_not_installed_is_named_with_the_cure() -> None:
    code = (
        "import runpy, sys; sys.modules['boto3'] = None;"
        "runpy.run_module('sagemaker_deploy', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 3
    assert result.stderr.splitlines()[0] == "error: boto3 is not installed"


def test_a_taken_default_port_is_replaced_by_a_free_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sagemaker_deploy", "local", "--json", "--logs", str(tmp_path)]
    command += ["--server-command", " ".join(FAKE_SERVER)]
    with contextlib.ExitStack() as stack:
        urls = []
        for _ in range(2):
            process = stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.terminate)
            assert process.stdout
            urls.append(json.loads(process.stdout.readline())["url"])
    assert len(set(urls)) == 2
