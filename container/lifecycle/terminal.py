"""Shows a person at a terminal the start: a line with its stage, then a summary."""

import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from container.logs import CLEAR_LINE

GIB = 2**30
BAR_WIDTH = 24
BOLD, YELLOW, PLAIN = "\033[1m", "\033[33m", "\033[0m"
NAME_WIDTH = 12


@dataclass(frozen=True, slots=True)
class UsedMemory:
    """Memory of processes; `is_upper_bound`: pages that they share may count several times."""

    num_bytes: int
    is_upper_bound: bool = False

    def __str__(self) -> str:
        return f"{'at most ' * self.is_upper_bound}{self.num_bytes / GIB:.1f} GiB in use"


class StageLine:
    """The last line of the terminal while the model loads: stage, bar, seconds.

    Log lines of all processes clear it, and the next `show` draws it again below them.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._spinner = cycle("|/-\\")

    def show(self, stage: str) -> None:
        """Draw a stage, such as `loading weights: 40 %`."""
        width = shutil.get_terminal_size().columns - 1
        seconds = f"{time.monotonic() - self._started:.0f} s"
        share = share_of(stage)
        bar = "" if share is None else f" [{'#' * round(share * BAR_WIDTH):.<{BAR_WIDTH}}]"
        line = f"{next(self._spinner)} {stage}{bar}  {seconds}"
        self._write(f"{CLEAR_LINE}{line[:width]}\r")

    def clear(self) -> None:
        """Remove the line."""
        self._write(CLEAR_LINE)

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def share_of(stage: str) -> float | None:
    """Return how much of a stage is done, from 0 to 1, if its text says so."""
    match = re.search(r": (\d+) %", stage)
    return None if match is None else min(1.0, int(match[1]) / 100)


def summary(
    base: str, info: Mapping[str, Any], blocks: int, memory: UsedMemory, free: int, *, has_ui: bool
) -> str:
    """Describe a server that is ready.

    `info` is of /info, empty without an engine or an embedder; `blocks` are those of the KV cache;
    `memory` is that of the server's processes, `free` the bytes left on the machine.
    """
    rows = [("Serving on", f"{BOLD}{base}{PLAIN}"), *_model_rows(info, blocks)]
    rows.append(("Memory", f"{memory}, {free / GIB:.1f} GiB free"))
    rows += [("Slow path", f"{YELLOW}{text}{PLAIN}") for text in info.get("fallbacks") or ()]
    if info.get("fallbacks"):
        rows.append(("", "docs/models.md explains it; REQUIRE_FAST_PATH=1 refuses such a start"))
    if has_ui:
        rows.append(("Try", f"{base}/ui in a browser"))
    if "model_type" not in info:
        rows.append(("" if has_ui else "Try", f"{_command('chat')} {base}, in another terminal"))
    rows.append(("", example(base, info)))
    rows.append(("Stop", "Ctrl-C"))
    return "\n" + "\n".join(f"  {name:<{NAME_WIDTH}}{text}" for name, text in rows) + "\n"


def _command(name: str) -> str:
    """Return a command of this installation as one types it here."""
    here = os.path.relpath(sys.executable)
    return f"{sys.executable if here.startswith('..') else here} -m container {name}"


def _model_rows(info: Mapping[str, Any], blocks: int) -> list[tuple[str, str]]:
    if "model_id" not in info:
        return [("Model", "user code, or several models")]
    kernels = f" ({info['cpu']} kernels)" if info.get("cpu") else ""
    form = f"{info['model_dtype']}{_quantized(info)} on {info['model_device_type']}{kernels}"
    rows = [("Model", str(info["model_id"])), ("Format", form)]
    if "attention" not in info:
        return [*rows, ("Served as", f"{next(iter(info['model_type']))} model")]
    is_paged = info["attention"] == "paged"
    how = "continuous batching, paged KV cache" if is_paged else "one request after another"
    rows += [("Served with", how)]
    tokens = f"{info['max_batch_total_tokens']:,} tokens"
    rows.append(("KV cache", f"{blocks:,} blocks, {tokens}" if is_paged else tokens))
    return [*rows, ("Context", f"{info['max_total_tokens']:,} tokens, prompt and answer together")]


def _quantized(info: Mapping[str, Any]) -> str:
    return f", {info['quantize']}" if info.get("quantize") else ""


def example(base: str, info: Mapping[str, Any] | None = None) -> str:
    """Return a command that calls the server."""
    body = '{"messages": [{"role": "user", "content": "What is deep learning?"}]}'
    if info and "model_type" in info:
        body = '{"inputs": ["What is deep learning?"]}'
    return f"curl {base}/invocations -H 'Content-Type: application/json' -d '{body}'"


def next_steps() -> str:
    """Describe what to do after a start that failed."""
    return (
        f"\n  {'Next':<{NAME_WIDTH}}{_command('doctor')}, which examines this machine and "
        f"these settings\n  {'':<{NAME_WIDTH}}docs/troubleshooting.md has it by symptom\n"
    )
