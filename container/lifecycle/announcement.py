"""Announces a start: its stages on a terminal, then that it is ready and how to call it."""

import contextlib
import json
import logging
import re
import sys
import threading
import time
import urllib.request
from typing import Any
from urllib.request import Request

import psutil

from container.ipc.health import why_unhealthy
from container.lifecycle.terminal import StageLine, UsedMemory, example, summary
from container.machine import free_memory_bytes
from container.settings.server import ServerSettings

log = logging.getLogger(__name__)

POLL_S = 0.2
INFO_TIMEOUT_S = 5.0
KV_BLOCKS = re.compile(r"^engine_blocks_total ([\d.e+]+)$", re.M)


def announce(server: ServerSettings, stopping: threading.Event, *, is_for_person: bool) -> None:
    """Wait for the first healthy /ping, as SageMaker does, and say how to call the server."""
    base = f"http://localhost:{server.port}"
    started = time.monotonic()
    if not _wait(server.port, stopping, StageLine() if is_for_person else None):
        return
    log.info("supervisor: ready after %.1f s: %s", time.monotonic() - started, base)
    info = _info(base, server.api_key)
    if reasons := info.get("fallbacks"):
        log.warning("supervisor: serving on a slow path: %s", "; ".join(reasons))
    if not is_for_person:
        log.info("try: %s", example(base, info))
        return
    memory, free = used_memory(), free_memory_bytes()
    blocks = _kv_blocks(base)
    sys.stderr.write(summary(base, info, blocks, memory, free, has_ui=server.has_ui))
    sys.stderr.flush()


def _wait(port: int, stopping: threading.Event, line: StageLine | None) -> bool:
    """Wait until /ping is healthy; return False if the server stops before."""
    is_healthy = False
    while not is_healthy and not stopping.wait(POLL_S):
        reason = why_unhealthy(port)
        is_healthy = reason is None
        if line is not None and reason is not None:
            line.show(reason)
    if line is not None:
        line.clear()
    return is_healthy


def _info(base: str, api_key: str | None) -> dict[str, Any]:
    """Return what /info says; nothing without an engine or an embedder."""
    with contextlib.suppress(OSError, ValueError):
        info = json.loads(_read(f"{base}/info", api_key))
        return info if isinstance(info, dict) else {}
    return {}


def _kv_blocks(base: str) -> int:
    with contextlib.suppress(OSError):
        if match := KV_BLOCKS.search(_read(f"{base}/metrics", None).decode()):
            return int(float(match[1]))
    return 0


def _read(url: str, api_key: str | None) -> bytes:
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    with urllib.request.urlopen(Request(url, headers=headers), timeout=INFO_TIMEOUT_S) as response:
        body: bytes = response.read()
        return body


def used_memory() -> UsedMemory:
    """Return the memory that this process and its children hold."""
    me = psutil.Process()
    total, is_upper_bound = 0, False
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just exited
            share = _proportional_bytes(process)
            is_upper_bound = is_upper_bound or share is None
            total += process.memory_info().rss if share is None else share
    return UsedMemory(total, is_upper_bound)


def _proportional_bytes(process: psutil.Process) -> int | None:
    """Return a process's memory, with its share of pages that several have; None if not known."""
    try:
        share: int | None = getattr(process.memory_full_info(), "pss", None)
    except (psutil.AccessDenied, OSError):
        return None
    return share
