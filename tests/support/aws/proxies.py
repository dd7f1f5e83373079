"""The proxy for tests, in a thread of this process."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.proxy.runtime.retries import RetrySettings
from sagemaker_deploy.proxy.serve import ProxySettings, serve
from sagemaker_deploy.proxy.targets import Target, Targets
from tests.support.aws.local_sagemaker import REGION

QUICK = RetrySettings(first_wait_s=0.02, longest_wait_s=0.05, capacity_poll_s=0.05)


@contextmanager
def proxying(
    models: dict[str, dict[str, Any]], default: str | None = None, **settings: Any
) -> Iterator[str]:
    """A proxy for the length of a block; its URL. Credentials are the environment's."""
    targets = Targets({name: Target(**fields) for name, fields in models.items()}, default)
    options = ProxySettings(**{"port": 0, "retries": QUICK, "shutdown_s": 1.0} | settings)
    urls: list[str] = []
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def note(url: str) -> None:
        urls.append(url)
        started.set()

    def run() -> None:
        try:
            loop.run_until_complete(serve(targets, Aws(REGION), options, stop, note))
        finally:
            loop.close()
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(30)
    try:
        assert urls, "the proxy did not start"
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
