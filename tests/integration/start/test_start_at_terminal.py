"""A start at a terminal: stages, a summary whose command works, and what to do after a failure."""

import fcntl
import json
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.servers import DEMO_MODEL, READY_WITHIN_S, ROOT, free_port

COLUMNS = 100


class Terminal:
    """A server whose output goes to a pseudo-terminal."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, fd: int) -> None:
        self.process, self.port = process, port
        self._fd, self._output = fd, b""

    @property
    def text(self) -> str:
        return self._output.decode(errors="replace")

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + READY_WITHIN_S
        while text not in self.text:
            assert time.monotonic() < until, f"never shown: {text}\n{self.text}"
            assert self._read() or self.process.poll() is None, f"ended:\n{self.text}"

    def read_to_end(self) -> int:
        code = None
        while self._read() or code is None:
            code = self.process.poll()
        return code

    def _read(self) -> bool:
        if not select.select([self._fd], [], [], 0.2)[0]:
            return False
        try:
            part = os.read(self._fd, 65536)
        except OSError:  # Linux: the other end is closed
            return False
        self._output += part
        return bool(part)


@contextmanager
def at_terminal(model: str, **settings: str) -> Iterator[Terminal]:
    fd, child_fd = pty.openpty()
    fcntl.ioctl(child_fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    port = free_port()
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    env = inherited | {"HF_MODEL_ID": model, "PORT": str(port), "HOST": "127.0.0.1"}
    env |= {"HF_HUB_OFFLINE": "1", "TERM": "xterm"} | settings
    process = subprocess.Popen(
        [sys.executable, "-m", "container", "serve"], env=env, cwd=ROOT, start_new_session=True,
        stdin=child_fd, stdout=child_fd, stderr=child_fd,
    )  # fmt: skip
    os.close(child_fd)
    try:
        yield Terminal(process, port, fd)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        os.close(fd)


def _call(line: str) -> None:
    arguments = shlex.split(line[line.index("curl") + len("curl") :])
    command = ["curl", "--silent", "--fail", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result
    assert json.loads(result.stdout)["choices"][0]["message"]["content"]


def _summary(text: str) -> str:
    return text[text.index("  Serving on") : text.index("Ctrl-C", text.index("  Serving on"))]


def _row_names(summary: str) -> list[str]:
    return [line[2:14].strip() for line in summary.splitlines()]


def test_a_start_shows_stages_then_a_summary_whose_command_works() -> None:
    with at_terminal(os.fspath(DEMO_MODEL.relative_to(ROOT))) as terminal:
        terminal.wait_for("Ctrl-C")
        _call(next(line for line in terminal.text.splitlines() if "curl" in line))
        terminal.process.terminate()
        shown = terminal.text
        assert terminal.read_to_end() == 0
    stages = re.findall(r"[|/\\-] ([a-z][^\r]+?)  \d+ s\r", shown)
    assert stages, shown
    plain = re.sub(r"\033\[\d*[mK]", "", shown)
    summary = _summary(plain)
    assert _row_names(summary) == _row_names(_summary((ROOT / "README.md").read_text()))
    assert "Model       examples/demo-model" in summary
    assert "-m container chat http://localhost:" in summary
    # No line of the log is behind what a stage left.
    assert not re.search(r" s\r(?!\033\[K|\r?\n)\d\d:\d\d:\d\d", shown)


def test_json_lines_have_no_stages_among_them() -> None:
    with at_terminal(os.fspath(DEMO_MODEL), JSON_OUTPUT="true") as terminal:
        terminal.wait_for('"try: curl')
        lines = [line for line in terminal.text.splitlines() if line.strip()]
    assert "\033" not in terminal.text
    assert [json.loads(line)["level"] for line in lines[:-1]]


@pytest.mark.parametrize(
    ("settings", "code", "reason"),
    [
        ({"MAX_TOTAL_TOKENS": "none"}, 2, "MAX_TOTAL_TOKENS"),
        ({"HF_MODEL_ID": "/no/such/model"}, 3, "there is no such folder"),
    ],
)
def test_a_failed_start_ends_with_what_to_do(
    settings: dict[str, str], code: int, reason: str
) -> None:
    with at_terminal(os.fspath(DEMO_MODEL), **settings) as terminal:
        assert terminal.read_to_end() == code
    assert reason in terminal.text
    assert terminal.text.rstrip().endswith("docs/troubleshooting.md has it by symptom")


def test_a_log_file_has_no_stages(tmp_path: Path) -> None:
    env = os.environ | {"HF_MODEL_ID": "/no/such/model", "PORT": str(free_port())}
    command = [sys.executable, "-m", "container", "serve"]
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, check=False)
    assert b"\033" not in result.stderr
    assert b"doctor" not in result.stderr
