"""How fast /health answers while the server streams: `python -m benchmarks.load.bench_health`.

Prints one JSON object: seconds at the median, the 99th percentile and the most, over all looks at
/health during the streams, and how many of them were not 200.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

import requests

from tests.support.servers import DEMO_MODEL, serving

PAUSE_S = 0.05


def main() -> None:
    """Serve, load, look, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(DEMO_MODEL))
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "log", options.model, MAX_TOTAL_TOKENS="1024") as server,
    ):
        over = threading.Event()
        streams = [
            threading.Thread(target=stream_until, args=(f"{server.url}/generate_stream", over))
            for _ in range(options.streams)
        ]
        for stream in streams:
            stream.start()
        time.sleep(2)  # every stream has begun
        looks = watch(f"{server.url}/health", options.seconds)
        over.set()
        for stream in streams:
            stream.join()
    print(json.dumps({"streams": options.streams} | summary(looks), indent=2))


def stream_until(url: str, over: threading.Event) -> None:
    """Keep one stream open; begin another when it ends."""
    body = {"inputs": "Tell me", "parameters": {"max_new_tokens": 900, "do_sample": True}}
    while not over.is_set():
        with requests.post(url, json=body, stream=True, timeout=120) as response:
            for _ in response.iter_content(256):
                if over.is_set():
                    return


def watch(url: str, seconds: float) -> list[tuple[float, int]]:
    """Look again and again, as an orchestrator does; seconds and status of each look."""
    looks = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.monotonic()
        status = requests.get(url, timeout=30).status_code  # a new connection each time
        looks.append((time.monotonic() - started, status))
        time.sleep(PAUSE_S)
    return looks


def summary(looks: list[tuple[float, int]]) -> dict[str, float]:
    """Percentiles over the looks."""
    times = sorted(taken for taken, _ in looks)
    return {
        "looks": len(times),
        "not_200": sum(status != 200 for _, status in looks),
        "p50_s": round(times[len(times) // 2], 4),
        "p99_s": round(times[min(len(times) - 1, int(len(times) * 0.99))], 4),
        "max_s": round(times[-1], 4),
    }


if __name__ == "__main__":
    main()
