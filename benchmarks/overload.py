"""Refusals and accepted requests at ten times the limit: `python -m benchmarks.overload`.

As many clients as the server has places stream without a pause. In every other phase there are nine
times as many more, each of which asks once a second. Prints how long a 429 took, and the time
between tokens of the streams with and without the overload, as one JSON object.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import requests

from benchmarks.chaos.raw_http import exchange, post
from tests.support.models.tiny_models import save_endless
from tests.support.servers import DEMO_MODEL, serving

LIMIT = 8
TIMES = 10
PAUSE_S = 1.0
NUM_TOKENS = 200
CHAT = {"messages": [{"role": "user", "content": "Tell me"}], "max_tokens": 2}
REFUSED_P99_S = 0.05
SLOWER = 1.2


def main() -> int:
    """Measure; exit with 1 if a 429 takes too long or accepted requests become slower."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phases", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=10, help="of a phase")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "endless"
        save_endless(model, tokenizer_from=DEMO_MODEL)
        with serving(Path(name) / "log", model, MAX_CONCURRENT_REQUESTS=str(LIMIT)) as server:
            result = measure(server.port, options.phases, options.seconds)
    print(json.dumps(result, indent=2))
    ratio = result["between_tokens_overloaded_s"] / result["between_tokens_s"]
    return int(result["refused_p99_s"] > REFUSED_P99_S or ratio > SLOWER)


def measure(port: int, num_phases: int, seconds: float) -> dict[str, float]:
    """Alternate phases without and with the overload; return the figures."""
    context = multiprocessing.get_context("spawn")
    gaps: list[list[float]] = [[], []]
    refused: list[float] = []
    statuses: list[int] = []
    for phase in range(num_phases):
        jobs = [_start(context, _stream_all, port, seconds)]
        if phase % 2:
            jobs.append(_start(context, _send_all, port, seconds))
        results = [pipe.recv() for pipe in jobs]
        gaps[phase % 2] += results[0]
        for status, took_s in results[1] if phase % 2 else ():
            statuses.append(status)
            if status == 429:
                refused.append(took_s)
    refused.sort()
    return {
        "requests_beyond_the_limit": len(statuses),
        "refused": len(refused),
        "errors": sum(status not in (200, 429) for status in statuses),
        "refused_p50_s": round(statistics.median(refused), 4),
        "refused_p99_s": round(refused[int(len(refused) * 0.99)], 4),
        "refused_max_s": round(refused[-1], 4),
        "between_tokens_s": round(statistics.fmean(gaps[0]), 5),
        "between_tokens_overloaded_s": round(statistics.fmean(gaps[1]), 5),
    }


def _start(
    context: "multiprocessing.context.SpawnContext",
    work: Callable[[int, float, Connection], None],
    port: int,
    seconds: float,
) -> Connection:
    here, there = context.Pipe()
    context.Process(target=work, args=(port, seconds, there), daemon=True).start()
    return here


def _stream_all(port: int, seconds: float, pipe: Connection) -> None:
    """Send the gaps between tokens of LIMIT clients."""
    gaps: list[float] = []
    _run(lambda until, _: _stream(port, until, gaps), LIMIT, seconds)
    pipe.send(gaps)


def _send_all(port: int, seconds: float, pipe: Connection) -> None:
    """Send the statuses and times of the requests of all other clients."""
    responses: list[tuple[int, float]] = []
    _run(lambda until, share: _send(port, until, share, responses), LIMIT * (TIMES - 1), seconds)
    pipe.send(responses)


def _run(client: Callable[[float, float], None], count: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=client, args=(until, n / count)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _stream(port: int, until: float, gaps: list[float]) -> None:
    url = f"http://127.0.0.1:{port}/generate_stream"
    body = {"inputs": "Tell me", "parameters": {"max_new_tokens": NUM_TOKENS}}
    while time.monotonic() < until:
        with requests.post(url, json=body, stream=True, timeout=60) as response:
            last = 0.0
            for line in response.iter_lines(chunk_size=1):
                if line and response.ok:
                    now = time.monotonic()
                    if last:
                        gaps.append(now - last)
                    last = now


def _send(port: int, until: float, share: float, responses: list[tuple[int, float]]) -> None:
    time.sleep(share * PAUSE_S)
    sent = post("/v1/chat/completions", CHAT)
    while time.monotonic() < until:
        answer = exchange(port, sent, 60)
        responses.append((answer.status, answer.seconds))
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    sys.exit(main())
