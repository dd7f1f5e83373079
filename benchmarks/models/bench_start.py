"""Measures where the time from the process's start to the first token goes.

.venv/bin/python -m benchmarks.models.bench_start [MODEL]: starts the server a few times. It prints
the median seconds of each part by the times in the server's log, of /ping, and of one token.
"""

import datetime
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
# The log line at the end of each part, and the part.
PARTS = (
    ("supervisor: version", "start of Python, imports of the supervisor"),
    ("looking for ", "imports of torch and transformers in the engine"),
    ("loading weights", "configuration, tokenizer, template, kernels' self-test"),
    ("sizing the KV cache", "weights: read, converted, packed; checked against float32"),
    ("warming up", "size of the KV cache"),
    ("supervisor: ready", "first passes; frontends"),
)
POLL_S = 0.02
WITHIN_S = 300
BODY = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}


@click.command()
@click.argument("model", default=str(ROOT / "examples" / "demo-model"))
@click.option("--runs", default=3, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path))
def main(model: str, runs: int, path: Path | None) -> None:
    """Start the server a few times and print the parts of its start."""
    results = [measure(model) for _ in range(runs)]
    medians = {name: statistics.median(run[name] for run in results) for name in results[0]}
    print("| Part | Seconds |\n|---|---|")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.2f} |")
    if path:
        path.write_text(json.dumps({"model": model, "runs": results, "medians": medians}))


def measure(model: str) -> dict[str, float]:
    """Return the seconds of each part of one start, and of the whole."""
    port = _free_port()
    env = os.environ | {"HF_MODEL_ID": model, "PORT": str(port), "HOST": "127.0.0.1"}
    command = [sys.executable, "-m", "container", "serve"]
    started = time.time()
    process = subprocess.Popen(
        command, env=env | {"HF_HUB_OFFLINE": "1"}, cwd=ROOT, stderr=subprocess.PIPE
    )
    try:
        os.set_blocking(process.stderr.fileno(), False)  # type: ignore[union-attr]
        log = _wait_ready(process, port)
        ready = time.time()
        _ask(port)
        answered = time.time()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    parts = _parts(log, started)
    return parts | {
        "**200 on `/ping`, from the start**": ready - started,
        "first request, one token": answered - ready,
    }


def _wait_ready(process: "subprocess.Popen[bytes]", port: int) -> str:
    log, deadline = b"", time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        log += process.stderr.read() or b""  # type: ignore[union-attr]
        assert process.poll() is None, log.decode()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1) as answer:
                if answer.status == 200:
                    time.sleep(0.2)  # for the last line
                    return (log + (process.stderr.read() or b"")).decode()  # type: ignore[union-attr]
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(POLL_S)
    raise TimeoutError(log.decode())


def _ask(port: int) -> None:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    request = urllib.request.Request(
        url, json.dumps(BODY).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def _parts(log: str, started: float) -> dict[str, float]:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    parts, before = {}, started
    for text, name in PARTS:
        line = next((line for line in lines if line["message"].startswith(text)), None)
        if line is not None:
            at = datetime.datetime.fromisoformat(line["timestamp"]).timestamp()
            parts[name] = at - before
            before = at
    return parts


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
