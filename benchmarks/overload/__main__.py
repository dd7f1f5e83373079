"""Refusals and accepted requests at ten times the limit: `python -m benchmarks.overload`.

As many clients as the server has places stream without a pause. In every other phase there are nine
times as many more, each of which asks `--pause` seconds after its last answer. Prints, as one JSON
object, how long a 429 took its client; the time between tokens of the streams with and without the
overload; and what a 429 took of the HTTP side's processor time. The clients and the engine share
the processors with it, so the first of these figures says as much about the machine.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.processes import by_role
from benchmarks.chaos.raw_http import post
from benchmarks.overload.clients import Clients, StreamReport
from tests.support.models.tiny_models import save_endless
from tests.support.servers import DEMO_MODEL, Server, serving

LIMIT = 8
TIMES = 10
NUM_TOKENS = 200
STREAM = post(
    "/generate_stream", {"inputs": "Tell me", "parameters": {"max_new_tokens": NUM_TOKENS}}
)
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
    "/invocations": {"inputs": "Tell me", "parameters": {"max_new_tokens": 2}},
}
REFUSED_P99_S = 0.05
SLOWER = 1.2


@dataclass
class Phases:
    """The results of the phases without, or with, the overload."""

    num_gaps: int = 0
    gaps_s: float = 0.0
    longest_s: float = 0.0
    http_cpu_s: float = 0.0
    responses: list[tuple[int, float]] = field(default_factory=list)
    stream_statuses: list[int] = field(default_factory=list)

    def add(self, streams: StreamReport, http_cpu_s: float) -> None:
        """Add a phase."""
        self.num_gaps += streams.num_gaps
        self.gaps_s += streams.gaps_s
        self.longest_s = max(self.longest_s, streams.longest_s)
        self.http_cpu_s += http_cpu_s
        self.stream_statuses += streams.statuses

    @property
    def between_tokens_s(self) -> float:
        """The mean time between two tokens of a stream."""
        return self.gaps_s / self.num_gaps


def main() -> int:
    """Measure; exit with 1 if a 429 takes too long or accepted requests become slower."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phases", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=10, help="of a phase")
    parser.add_argument("--pause", type=float, default=1, help="of a client between requests, s")
    parser.add_argument("--route", choices=BODIES, default="/v1/chat/completions")
    parser.add_argument("--model", type=Path, help="in place of a tiny one with endless answers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = options.model or Path(name) / "endless"
        if options.model is None:
            save_endless(model, tokenizer_from=DEMO_MODEL)
        with serving(Path(name) / "log", model, MAX_CONCURRENT_REQUESTS=str(LIMIT)) as server:
            asked = post(options.route, BODIES[options.route])
            result = measure(server, asked, options.phases, options.seconds, options.pause)
    print(json.dumps(result, indent=2))
    is_slow = result["refused_p99_s"] > REFUSED_P99_S or result["slower"] > SLOWER
    return int(is_slow or result["errors"] > 0)


def measure(
    server: Server, asked: bytes, num_phases: int, seconds: float, pause_s: float
) -> dict[str, float]:
    """Alternate phases without and with the overload; return the figures."""
    quiet, overloaded = Phases(), Phases()
    for number in range(num_phases):
        phases = overloaded if number % 2 else quiet
        cpu_s = _http_cpu_s(server)
        jobs = [Clients("stream", server.port, STREAM, LIMIT, seconds)]
        if phases is overloaded:
            count = LIMIT * (TIMES - 1)
            jobs.append(Clients("send", server.port, asked, count, seconds, pause_s))
        streams, *responses = [job.result() for job in jobs]
        phases.add(StreamReport(**streams), _http_cpu_s(server) - cpu_s)
        phases.responses += [(status, took_s) for each in responses for status, took_s in each]
    return _figures(quiet, overloaded)


def _figures(quiet: Phases, overloaded: Phases) -> dict[str, float]:
    refused = sorted(took_s for status, took_s in overloaded.responses if status == 429)
    statuses = [status for status, _ in overloaded.responses]
    statuses += quiet.stream_statuses + overloaded.stream_statuses
    # The streams cost as much a token with the refusals as without.
    of_streams_s = quiet.http_cpu_s / quiet.num_gaps * overloaded.num_gaps
    return {
        "requests_beyond_the_limit": len(overloaded.responses),
        "refused": len(refused),
        "errors": sum(status not in (200, 429) for status in statuses),
        "refused_p50_s": round(statistics.median(refused), 5),
        "refused_p99_s": round(refused[int(len(refused) * 0.99)], 5),
        "refused_max_s": round(refused[-1], 5),
        "http_cpu_of_a_refusal_s": round((overloaded.http_cpu_s - of_streams_s) / len(refused), 5),
        "http_cpu_of_a_token_s": round(quiet.http_cpu_s / quiet.num_gaps, 6),
        "between_tokens_s": round(quiet.between_tokens_s, 5),
        "between_tokens_overloaded_s": round(overloaded.between_tokens_s, 5),
        "slower": round(overloaded.between_tokens_s / quiet.between_tokens_s, 3),
        "longest_gap_s": round(quiet.longest_s, 4),
        "longest_gap_overloaded_s": round(overloaded.longest_s, 4),
    }


def _http_cpu_s(server: Server) -> float:
    """Return the processor time that the HTTP processes have taken."""
    times = [process.cpu_times() for process in by_role(server.process.pid)["HTTP worker"]]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    sys.exit(main())
