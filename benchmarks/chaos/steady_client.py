"""A well-behaved client in another process, which records how long it waits.

It streams short completions, one after another. A gap is the time until the first token of one, or
between two tokens.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import requests

BODY = {"inputs": "Tell me", "parameters": {"max_new_tokens": 32}}
TIMEOUT_S = 60
ROOT = Path(__file__).parents[2]
NO_REPORT = json.dumps({"failures": ["the client itself died"]})


@dataclass
class SteadyReport:
    """Results of the client: streams, gaps in seconds (the ten largest), and failures in words."""

    num_streams: int = 0
    gaps_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def max_gap_s(self) -> float:
        """Return the longest gap."""
        return max(self.gaps_s, default=0.0)

    def note_gap(self, gap_s: float) -> None:
        """Keep a gap if it is among the largest."""
        self.gaps_s = sorted([*self.gaps_s, gap_s], reverse=True)[:10]


@contextmanager
def steady_client(url: str) -> Iterator[SteadyReport]:
    """Run the client for the length of a block; its report is complete after the block."""
    report = SteadyReport()
    command = [sys.executable, "-m", "benchmarks.chaos.steady_client", url]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        try:
            yield report
        finally:
            process.stdin.close()  # it ends after its stream
            report.__dict__.update(json.loads(process.stdout.read() or NO_REPORT))


def main() -> None:
    """Stream until the standard input ends, then print the report as JSON."""
    report = SteadyReport()
    is_over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
    session = requests.Session()
    print("begun", flush=True)
    while not is_over.is_set():
        try:
            _stream(session, sys.argv[1], report)
        except (requests.RequestException, RuntimeError) as error:
            report.failures.append(str(error)[:300])
            time.sleep(0.05)  # a server that is down refuses at once
    print(json.dumps(asdict(report)))


def _stream(session: requests.Session, url: str, report: SteadyReport) -> None:
    last, num_events = time.monotonic(), 0
    with session.post(
        f"{url}/generate_stream", json=BODY, stream=True, timeout=TIMEOUT_S
    ) as response:
        if not response.ok:
            raise RuntimeError(f"{response.status_code}: {response.text[:200]}")
        for line in response.iter_lines(chunk_size=1):
            if not line:
                continue
            now = time.monotonic()
            report.note_gap(now - last)
            last, num_events = now, num_events + 1
            if b'"error"' in line:
                raise RuntimeError(line.decode()[:200])
    if not num_events:
        raise RuntimeError("a stream without an event")
    report.num_streams += 1


if __name__ == "__main__":
    main()
