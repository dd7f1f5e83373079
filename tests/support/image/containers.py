"""Containers of the built image for tests: started as SageMaker does, asked from within, stopped.

Only for tests/docker_image, which `make image-test` runs with these variables: CONTAINER_IMAGE is
the image's name, ENGINE the program that runs it (docker or podman).
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.servers import DEMO_MODEL, wait_for

IMAGE = os.environ.get("CONTAINER_IMAGE", "")
ENGINE = os.environ.get("ENGINE", "docker")
# Nothing that the contract of SageMaker does not give: no network, no capability, no disk but /tmp.
BARE = ("--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL")
BARE += ("--security-opt=no-new-privileges", "--no-healthcheck")
READY_WITHIN_S = 120

# Runs inside the container, where the port is, with the image's own Python.
ASK = """
import http.client, json, sys
port, method, path, headers, body = json.load(sys.stdin)
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
connection.request(method, path, body.encode() if body is not None else None, headers)
answer = connection.getresponse()
print(json.dumps([answer.status, {k.lower(): v for k, v in answer.getheaders()}]), flush=True)
while piece := answer.read1(65536):
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
"""


def engine(*arguments: str | Path, check: bool = True, **options: Any) -> str:
    """Run docker or podman; its standard output."""
    done = subprocess.run([ENGINE, *arguments], capture_output=True, text=True, **options)
    assert not check or done.returncode == 0, f"{ENGINE} {arguments[0]}: {done.stderr}"
    return done.stdout


def run_once(*command: str, entrypoint: str = "", options: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run the image until it ends; exit code and output."""
    flags = [f"--entrypoint={entrypoint}"] if entrypoint else []
    arguments = [ENGINE, "run", "--rm", *BARE, *options, *flags, IMAGE, *command]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def mount(folder: Path, inside: str = "/opt/ml/model") -> str:
    """The option that lends a folder to a container, read-only."""
    return f"--volume={folder}:{inside}:ro"


@dataclass
class Answer:
    """The answer of the server: status, headers in small letters, body."""

    status: int
    headers: dict[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)

    def events(self) -> list[dict]:
        """The server-sent events of the body, without OpenAI's last word."""
        lines = [line for line in self.text.splitlines() if line]
        assert all(line.startswith("data:") for line in lines), self.text
        events = [line.removeprefix("data:").strip() for line in lines]
        return [json.loads(event) for event in events if event != "[DONE]"]


@dataclass
class Container:
    """A started container."""

    name: str
    port: int = 8080

    def begin(
        self, path: str, body: Any = None, method: str = "", *, outside: bool = False
    ) -> "subprocess.Popen[str]":
        """Send a request and leave the answer to be read.

        `outside`: from a process of this machine in the container's network (only root may), which
        lives on when the container ends.
        """
        text = body if isinstance(body, str) or body is None else json.dumps(body)
        request = [self.port, method or ("GET" if body is None else "POST"), path]
        request += [{"Content-Type": "application/json"}, text]
        where = [ENGINE, "exec", "-i", self.name]
        if outside:
            where = ["nsenter", "--target", self.state("Pid"), "--net"]
        asking = subprocess.Popen(
            [*where, "python3", "-S", "-c", ASK],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        asking.stdin.write(json.dumps(request))
        asking.stdin.close()
        asking.stdin = None
        return asking

    def ask(self, path: str, body: Any = None, method: str = "") -> Answer:
        """Send a request and read its whole answer."""
        asking = self.begin(path, body, method)
        output, errors = asking.communicate(timeout=150)
        assert asking.returncode == 0, errors
        head, _, text = output.partition("\n")
        status, headers = json.loads(head)
        return Answer(status, headers, text)

    def logs(self) -> list[str]:
        """Return its log so far, line by line."""
        done = subprocess.run([ENGINE, "logs", self.name], capture_output=True, text=True)
        return (done.stdout + done.stderr).splitlines()

    def state(self, field: str) -> str:
        return engine("inspect", "--format", f"{{{{.State.{field}}}}}", self.name).strip()

    def wait_ready(self) -> None:
        wait_for(self._is_ready, READY_WITHIN_S, lambda: "\n".join(self.logs()))

    def terminate(self) -> None:
        """SIGTERM, as SageMaker sends it."""
        engine("kill", "--signal", "TERM", self.name)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.terminate()
        return self.exit_code()

    def exit_code(self) -> int:
        """Wait for the end within the 30 s."""
        return int(engine("wait", self.name, timeout=30))

    def _is_ready(self) -> bool:
        assert self.state("Running") == "true", "\n".join(self.logs())
        asking = self.begin("/ping")
        output, _ = asking.communicate(timeout=60)
        return asking.returncode == 0 and json.loads(output.partition("\n")[0])[0] == 200


@contextmanager
def container(
    *options: str, model: Path | None = DEMO_MODEL, port: int = 8080, ready: bool = True, **env: str
) -> Iterator[Container]:
    """The image with the argument `serve`, as SageMaker starts it; removed in the end."""
    flags = [f"--env={name}={value}" for name, value in env.items()]
    flags += [mount(model)] if model else []
    name = engine("run", "--detach", *BARE, *flags, *options, IMAGE, "serve").strip()
    started = Container(name, port)
    try:
        if ready:
            started.wait_ready()
        yield started
    finally:
        engine("kill", name, check=False)  # it may have ended
        engine("rm", "--force", name)
