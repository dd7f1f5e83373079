"""Runs the proxy until it is stopped."""

import asyncio
import contextlib
import resource
import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from sagemaker_deploy import service_model
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.proxy.app import make_app
from sagemaker_deploy.proxy.endpoint import Endpoint
from sagemaker_deploy.proxy.keys import Keys, check_host
from sagemaker_deploy.proxy.metrics import Metrics
from sagemaker_deploy.proxy.request_log import RequestLog
from sagemaker_deploy.proxy.runtime.retries import RetrySettings
from sagemaker_deploy.proxy.runtime.runtime_client import RuntimeClient
from sagemaker_deploy.proxy.runtime.signing import Signer
from sagemaker_deploy.proxy.targets import Targets

BACKLOG = 4096
KEEP_ALIVE_S = 75
SHUTDOWN_S = 60.0
MOST_FILES_ON_MACOS = 10_240  # OPEN_MAX; its hard limit is infinite, and refused


@dataclass(frozen=True)
class ProxySettings:
    """Where the proxy listens, who may use it, and how it retries."""

    host: str = "127.0.0.1"
    port: int = 8090
    keys: Keys = field(default_factory=lambda: Keys({}))
    retries: RetrySettings = field(default_factory=RetrySettings)
    shutdown_s: float = SHUTDOWN_S
    record: Path | None = None


@contextlib.asynccontextmanager
async def serving(targets: Targets, aws: Aws, settings: ProxySettings) -> AsyncIterator[str]:
    """Serve for the length of a block, and yield the URL. Raises ConfigError, OSError.

    At the end running requests have `shutdown_s` seconds.
    """
    check_host(settings.host, settings.keys)
    signer = Signer(aws.credentials, aws.region)
    url = aws.endpoint_url(service_model.RUNTIME)
    tls = tls_context(aws.ca_bundle)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, ssl=tls)
    # Not `trust_env`: with it a line of ~/.netrc would replace the signature.
    async with aiohttp.ClientSession(connector=connector, proxy=proxy_of(url)) as http:
        client = RuntimeClient(url, signer, http)
        endpoints = {
            name: Endpoint(target, client, settings.retries)
            for name, target in targets.models.items()
        }
        request_log = RequestLog(settings.record) if settings.record else None
        app = make_app(targets, endpoints, settings.keys, Metrics(), request_log)
        runner = web.AppRunner(
            app,
            handler_cancellation=True,  # a client that leaves ends its invocation
            access_log=None,
            shutdown_timeout=settings.shutdown_s,
            keepalive_timeout=KEEP_ALIVE_S,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, settings.host, settings.port, backlog=BACKLOG).start()
            host, port = runner.addresses[0][:2]
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            await runner.cleanup()
            if request_log is not None:
                request_log.close()


async def serve(
    targets: Targets,
    aws: Aws,
    settings: ProxySettings,
    stop: asyncio.Event,
    on_start: Callable[[str], None],
) -> None:
    """Serve until `stop` is set; `on_start` gets the URL."""
    raise_file_limit()
    async with serving(targets, aws, settings) as url:
        on_start(url)
        await stop.wait()


def raise_file_limit() -> None:
    """Allow as many open files as the system does: each stream has two connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in (most, MOST_FILES_ON_MACOS):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (number, most))
            return


def tls_context(bundle: str) -> ssl.SSLContext:
    """Trust the certificates in a file. Raises ConfigError."""
    try:
        return ssl.create_default_context(cafile=bundle)
    except OSError as error:
        raise ConfigError([f"AWS_CA_BUNDLE {bundle}: no certificates there: {error}"]) from error


def proxy_of(url: str) -> str | None:
    """Return the proxy for a URL by HTTPS_PROXY, HTTP_PROXY and NO_PROXY, as boto3 has it."""
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxy = urllib.request.getproxies().get(parts.scheme)
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"
