"""Logs that the server is ready, whether it is slow, and how to call it."""

import json
import logging
import sys
import threading
import time
import urllib.request
from urllib.request import Request

from container.ipc.health import is_healthy
from container.settings.server import ServerSettings

log = logging.getLogger(__name__)

POLL_S = 0.2
INFO_TIMEOUT_S = 5.0


def announce(server: ServerSettings, stopping: threading.Event) -> None:
    """Wait for the first healthy /ping, as SageMaker does, and log how to call the server."""
    base = f"http://localhost:{server.port}"
    started = time.monotonic()
    while not stopping.wait(POLL_S):
        if is_healthy(server.port):
            break
    else:
        return
    log.info("supervisor: ready after %.1f s: %s", time.monotonic() - started, base)
    if reasons := _fallbacks(base, server.api_key):
        log.warning("supervisor: serving on a slow path: %s", "; ".join(reasons))
    if sys.stderr.isatty():
        page = f"{base}/ui in a browser, or" if server.has_ui else "Try"
        print(f"\nServing on {base}  (Ctrl-C stops it).\n{page}:\n\n  {_example(base)}\n")
    else:
        log.info("try: %s", _example(base))


def _fallbacks(base: str, api_key: str | None) -> list[str]:
    """Return the slow paths that the server reports; none if it reports nothing."""
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        with urllib.request.urlopen(
            Request(f"{base}/info", headers=headers), timeout=INFO_TIMEOUT_S
        ) as response:
            fallbacks: list[str] = json.load(response).get("fallbacks", [])
    except (OSError, ValueError):  # no language model, or it has just died
        return []
    return fallbacks


def _example(base: str) -> str:
    body = '{"messages": [{"role": "user", "content": "What is deep learning?"}]}'
    return f"curl {base}/invocations -H 'Content-Type: application/json' -d '{body}'"
