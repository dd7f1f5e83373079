"""Send bodies and headers that no client should send: `python -m benchmarks.fuzz`.

Over every route, on loopback, bounded in count and time, with a well-behaved client beside it.
Exits with 1 if an answer was 5xx or a failure of the engine, a request got no answer, a process
died, a traceback was logged, blocks or places were not given back, or that client waited for
longer than --gap.
"""

import argparse
import itertools
import json
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.chaos.raw_http import exchange
from benchmarks.chaos.steady_client import SteadyReport, steady_client
from benchmarks.fuzz.bodies import cases
from benchmarks.fuzz.schema_bodies import schema_cases
from benchmarks.fuzz.sending import TIMEOUT_S, FuzzReport, fuzz, harm, long_lived
from tests.support.models.embedders import save_embedder
from tests.support.servers import DEMO_MODEL, Server, serving

# Short answers, so that many requests fit into the time.
SETTINGS = {"MAX_TOTAL_TOKENS": "128", "LOG_LEVEL": "info"}
# A share of the cases follows the routes' schemas, by schemathesis.
SCHEMA_SHARE = 0.05


def main() -> int:
    """Serve, send, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gap", type=float, default=1.0, help="longest gap of the other client")
    parser.add_argument("--only", help="send this one case, SEED-NUMBER, and show the answer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _serving(Path(folder)) as server:
        if options.only:
            return _send_one(server, options.only)
        pids = long_lived(server)
        num_schema = int(options.count * SCHEMA_SHARE)
        by_schema = list(schema_cases(options.seed, num_schema))
        requests = itertools.chain(by_schema, cases(options.seed, options.count - num_schema))
        with steady_client(server.url) as steady:
            report = fuzz(server.port, requests, options.seconds)
        lines = [*report.failures, *harm(server, pids)]
    return _judge(report, steady, lines, options.gap)


def _serving(folder: Path) -> AbstractContextManager[Server]:
    embedder = save_embedder(folder / "embedder", "bert")
    return serving(folder / "log", DEMO_MODEL, EMBEDDING_MODEL_ID=str(embedder), **SETTINGS)


def _judge(report: FuzzReport, steady: SteadyReport, lines: list[str], gap_s: float) -> int:
    if steady.max_gap_s > gap_s or steady.failures:
        lines.append(f"the client beside it: gaps {steady.gaps_s}, failures {steady.failures[:5]}")
    for line in lines[len(report.failures) :]:
        print(line)
    print(json.dumps({
        "requests": report.num_sent,
        "seconds": round(report.seconds, 1),
        "statuses": {str(status): num for status, num in sorted(report.statuses.items())},
        "slowest_s": round(report.slowest_s, 2),
        "steady_streams": steady.num_streams,
        "steady_max_gap_s": round(steady.max_gap_s, 3),
        "failures": len(lines),
    }))  # fmt: skip
    return 1 if lines else 0


def _send_one(server: Server, name: str) -> int:
    seed, number = map(int, name.split("-"))
    case = next(itertools.islice(cases(seed, number + 1), number, None))
    print(case.sent[:4000])
    print(exchange(server.port, case.sent, TIMEOUT_S, half_closes=case.half_closes))
    print(server.log[-3000:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
