"""Nothing that the local endpoint starts may outlive it."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from sagemaker_deploy.errors import EndpointFailed
from sagemaker_deploy.local.containers.launch import Command
from sagemaker_deploy.local.containers.process import Container, free_port
from tests.support.aws.local_sagemaker import FAKE_SERVER, ROOT
from tests.support.servers import wait_for


def _have_exited(pids: list[int]) -> bool:
    return not any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        for pid in pids
    )


def _container(tmp_path: Path, argv: list[str], **env: str) -> Container:
    port = free_port()
    env = {"PATH": os.environ["PATH"], "SAGEMAKER_BIND_TO_PORT": str(port)} | env
    return Container(Command(argv, env), port, tmp_path / "log")


def test_stop_ends_every_process(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    container = _container(tmp_path, FAKE_SERVER)
    container.wait_healthy(20)
    pids = [child.pid for child in set(psutil.Process().children(recursive=True)) - before]
    assert len(pids) == 2  # the leash and the server
    container.stop()
    wait_for(lambda: _have_exited(pids), 5)


def test_grandchildren_are_killed_with_the_command(tmp_path: Path) -> None:
    script = "sleep 300 & echo $! > child; echo up"
    container = _container(tmp_path, ["sh", "-c", f"cd {tmp_path}; {script}"])
    wait_for(lambda: not container.is_running, 10)
    container.stop()
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: _have_exited([child]), 5)  # killed; init has yet to take note


def test_killing_the_owner_ends_its_containers(tmp_path: Path) -> None:
    owner = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from sagemaker_deploy.local.containers.launch import Command
        from sagemaker_deploy.local.containers.process import Container
        command = Command(["sleep", "300"], {{"PATH": "/bin:/usr/bin"}})
        one = Container(command, 1, Path({str(tmp_path / "log")!r}))
        print("up", flush=True)
        time.sleep(300)
    """)
    process = subprocess.Popen([sys.executable, "-c", owner], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    children = psutil.Process(process.pid).children(recursive=True)
    wait_for(lambda: len(psutil.Process(process.pid).children(recursive=True)) == 2, 10)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    wait_for(lambda: _have_exited([child.pid for child in children]), 10)


def test_a_container_exit_is_reported_with_its_log(tmp_path: Path) -> None:
    container = _container(tmp_path, ["sh", "-c", "echo no model here; exit 3"])
    with pytest.raises(EndpointFailed, match=r"exit code 3(.|\n)*no model here"):
        container.wait_healthy(10)
    container.stop()


def test_a_container_that_stays_unhealthy_fails_in_its_time(tmp_path: Path) -> None:
    container = _container(tmp_path, FAKE_SERVER, SICK="1")
    with pytest.raises(EndpointFailed, match="did not pass the ping health check within 1 s"):
        container.wait_healthy(1)
    container.stop()
