"""The server process of one model of a multi-model endpoint."""

import collections
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from container.errors import MalformedRequest, NotEnoughMemory, ServingError
from container.settings.process_env import PARENT_PID

MAX_LOG_LINES = 30
# A longer line of a log is forwarded in pieces of this many characters.
MAX_LINE = 65_536
EXIT_WITHOUT_MEMORY = -signal.SIGKILL  # the exit code when the kernel is out of memory
# Variables of this process that a model's server must not inherit.
OWN = ("SAGEMAKER_MULTI_MODEL", "SAGEMAKER_BIND_TO_PORT", "HF_MODEL_ID", "MODEL_ID", "PORT", "HOST")


@dataclass(slots=True)
class ModelServer:
    """One model's server process."""

    name: str
    url: str
    port: int
    process: "subprocess.Popen[str]"
    last_lines: "collections.deque[str]"
    is_ready: bool = False

    def has_left(self) -> bool:
        """Whether the process has exited."""
        return self.process.poll() is not None

    def reason(self) -> str:
        """Return the last error in its log."""
        for line in reversed(self.last_lines):
            record = _parsed(line)
            if record.get("level") == "error":
                return str(record.get("message"))[:500]
        return f"its server exited with code {self.process.returncode}"


def start_server(name: str, url: str, environ: Mapping[str, str]) -> ModelServer:
    """Start the server of the model in the folder `url`; its log goes to this process's log."""
    port = _free_port()
    own = {key: value for key, value in environ.items() if key not in OWN}
    own = {key: value for key, value in own.items() if not key.startswith("CONTAINER_")}
    own |= {
        "HF_MODEL_ID": url, "PORT": str(port), "HOST": "127.0.0.1", "JSON_OUTPUT": "true",
        PARENT_PID: str(os.getpid()),
    }  # fmt: skip
    own.pop("PROMETHEUS_MULTIPROC_DIR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "container", "serve"], env=own, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    server = ModelServer(name, url, port, process, collections.deque(maxlen=MAX_LOG_LINES))
    threading.Thread(target=_pass_log, args=(server,), daemon=True).start()
    return server


def _pass_log(server: ModelServer) -> None:
    """Forward a model's log lines to this process's log, with its name."""
    assert server.process.stderr is not None
    while line := server.process.stderr.readline(MAX_LINE):
        server.last_lines.append(line)
        record = _parsed(line)
        written = json.dumps({"model": server.name} | record) + "\n" if record else line
        sys.stderr.write(written)


def load_error(server: ModelServer, code: int) -> ServingError:
    """Return the error for a server that exited while it loaded its model."""
    reason = server.reason()
    if code == EXIT_WITHOUT_MEMORY or "memory" in reason.lower() or "signal 9" in reason:
        return NotEnoughMemory(f"model {server.name!r} found no memory: {reason}")
    return MalformedRequest(f"model {server.name!r} cannot be loaded: {reason}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _parsed(line: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
