"""A real server for the parts: starts it with the whole environment, asks it, reads its log."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.supervise import ROOT

REQUEST_S = 60
MEMORY_LINE = re.compile(r"(weights|activations|CUDA graphs|KV cache|states) +([0-9.]+) GiB")


class Server:
    """Owns a server's process; its log goes to a file and, at the end, to this process's output."""

    def __init__(self, model: Path, **settings: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = Path(tempfile.mkdtemp()) / "server.log"
        names = {"HF_MODEL_ID": str(model), "PORT": str(port), "HOST": "127.0.0.1"}
        self.started_at = time.monotonic()
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "container", "serve"], cwd=ROOT, stdout=log, stderr=log,
                env={**os.environ, **names, **settings},
            )  # fmt: skip

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self.log_path.read_text(errors="replace")

    def wait_ready(self, seconds: float) -> float:
        """Wait until /ping is 200; return the seconds since the start."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server left with {self.process.returncode}:\n{self.log}")
            try:
                urllib.request.urlopen(f"{self.url}/ping", timeout=5).close()
                return time.monotonic() - self.started_at
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"the server was not ready within {seconds:.0f} s:\n{self.log}")

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send JSON; return the answer. Raises RuntimeError with the body of an error."""
        with self._open(path, body) as answer:
            value: dict[str, Any] = json.load(answer)
            return value

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send JSON; yield the events of the answer."""
        with self._open(path, body | {"stream": True}) as answer:
            for line in answer:
                data = line.decode().removeprefix("data:").strip()
                if line.startswith(b"data:") and data != "[DONE]":
                    yield json.loads(data)

    def get(self, path: str) -> dict[str, Any]:
        """Fetch JSON."""
        with urllib.request.urlopen(self.url + path, timeout=REQUEST_S) as answer:
            value: dict[str, Any] = json.load(answer)
            return value

    def memory_table(self) -> dict[str, float]:
        """Return the memory plan of its log, in GiB."""
        return {name: float(size) for name, size in MEMORY_LINE.findall(self.log)}

    def stop(self) -> int:
        """Stop it; return the exit code, and print the log."""
        self.process.terminate()
        try:
            code = self.process.wait(40)
        finally:
            self.process.kill()
            print(self.log, flush=True)
        return code

    def _open(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            return urllib.request.urlopen(request, timeout=REQUEST_S)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code} {error.read().decode()[:1000]}") from error


def gpu_memory_gib() -> float | None:
    """Return the GPU's used memory as nvidia-smi has it, None without one."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return float(shown.stdout.splitlines()[0]) / 1024
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
