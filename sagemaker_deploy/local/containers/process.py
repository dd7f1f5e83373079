"""One running container: its process, which dies with its parent, its port, log and health."""

import http.client
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from sagemaker_deploy.errors import EndpointFailed
from sagemaker_deploy.local.containers.launch import Command

PING_TIMEOUT_S = 2.0
PING_EVERY_S = 0.1
# A FailureReason has 1024 characters; the last line says why a container ended.
LOG_LINES_SHOWN, LOG_CHARACTERS_SHOWN = 5, 800


class Container:
    """Owned by the fleet. The port answers /ping and /invocations once `wait_healthy` returns."""

    def __init__(self, command: Command, port: int, log_path: Path) -> None:
        self.port = port
        self.log_path = log_path
        self._stopped = threading.Event()
        # Run by path and with -P, so that the command's environment does not need this package.
        watched_command = [
            sys.executable,
            "-P",
            str(Path(__file__).with_name("parent_death.py")),
            *command.argv,
        ]
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                watched_command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=command.env,
            )

    @property
    def is_running(self) -> bool:
        """Whether the process exists."""
        return self._process.poll() is None

    @property
    def has_died(self) -> bool:
        """Whether the process has ended without `stop`."""
        return not self.is_running and not self._stopped.is_set()

    def ping(self) -> int:
        """Return the status of /ping; 0 if nothing answers within SageMaker's two seconds."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PING_TIMEOUT_S)
        try:
            connection.request("GET", "/ping")
            with connection.getresponse() as answer:
                return answer.status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def wait_healthy(self, timeout_s: float) -> None:
        """Wait for /ping to be 200. Raises EndpointFailed with the end of the log."""
        deadline = time.monotonic() + timeout_s
        while self.ping() != 200:
            if self._stopped.is_set():
                raise EndpointFailed("stopped while starting")
            if not self.is_running:
                code = self._process.returncode
                raise EndpointFailed(f"The container left with exit code {code}. {self._tail()}")
            if time.monotonic() > deadline:
                raise EndpointFailed(
                    f"The container did not pass the ping health check within {timeout_s:.0f} s. "
                    f"{self._tail()}"
                )
            time.sleep(PING_EVERY_S)

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after 30 s; return when no process is left."""
        self._stopped.set()
        assert self._process.stdin is not None
        self._process.stdin.close()  # parent_death.py then stops the command
        self._process.wait()

    def _tail(self) -> str:
        lines = self.log_path.read_text(errors="replace").strip().splitlines()
        end = "\n".join(lines[-LOG_LINES_SHOWN:])[-LOG_CHARACTERS_SHOWN:]
        return f"Log {self.log_path} ends with:\n{end}" if end else f"Log: {self.log_path}"


def free_port() -> int:
    """Find a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
