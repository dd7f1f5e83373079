"""Measures memory and CPU time of `sagemaker_deploy proxy` under many streams.

.venv-sdk/bin/python -m benchmarks.load.bench_proxy: an upstream that sends a token to each stream
every half second stands for SageMaker; upstream, proxy and clients are processes of their own.
"""

import asyncio
import json
import os
import subprocess
import sys
import time

import aiohttp
import click
import psutil
from aiohttp import web

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.local.invocations.event_stream import CONTENT_TYPE, payload_part
from sagemaker_deploy.proxy.serve import ProxySettings, raise_file_limit, serve
from sagemaker_deploy.proxy.targets import ContainerKind, Target, Targets

HOST = "127.0.0.1"
UPSTREAM_PORT, PROXY_PORT = 18941, 18942
HEADERS = {"Content-Type": CONTENT_TYPE, "X-Amzn-SageMaker-Content-Type": "text/event-stream"}
POLL_S = 0.2
START_S = 3.0


@click.group()
def main() -> None:
    """Measure the proxy; `measure` starts the other commands."""
    raise_file_limit()


@main.command()
@click.option("--streams", default=2000, show_default=True)
@click.option("--tokens", default=40, show_default=True)
@click.option("--whole", is_flag=True, help="Clients do not stream; the proxy joins.")
def measure(streams: int, tokens: int, whole: bool) -> None:
    """Start all processes and print what the proxy used."""
    command = [sys.executable, "-m", "benchmarks.load.bench_proxy"]
    upstream = subprocess.Popen([*command, "upstream", str(tokens)])
    proxy = subprocess.Popen([*command, "proxy"])
    try:
        time.sleep(START_S)
        process, peak = psutil.Process(proxy.pid), 0
        clients = subprocess.Popen([*command, "clients", str(streams), *["--whole"] * whole])
        while clients.poll() is None:
            peak = max(peak, process.memory_info().rss)
            time.sleep(POLL_S)
        cpu = process.cpu_times()
        print(f"proxy: peak {peak / 2**20:.0f} MiB, CPU {cpu.user + cpu.system:.1f} s, "
              f"{process.num_threads()} threads")  # fmt: skip
    finally:
        upstream.kill()
        proxy.kill()


@main.command()
@click.argument("tokens", type=int)
def upstream(tokens: int) -> None:
    """Serve the streaming call of SageMaker's runtime API."""

    async def stream(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        for number in range(tokens):
            await response.write(payload_part(_chunk(is_last=number == tokens - 1)))
            await asyncio.sleep(0.5)
        await response.write_eof()
        return response

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/endpoints/{name}/invocations-response-stream", stream)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, HOST, UPSTREAM_PORT, backlog=4096).start()
        await asyncio.Event().wait()

    asyncio.run(run())


def _chunk(*, is_last: bool) -> bytes:
    reason = "stop" if is_last else None
    choice = {"index": 0, "delta": {"content": " word"}, "finish_reason": reason}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps(chunk | {"choices": [choice]}).encode() + b"\n\n"


@main.command()
def proxy() -> None:
    """Serve the proxy in front of the upstream."""
    os.environ["AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"] = f"http://{HOST}:{UPSTREAM_PORT}"
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    targets = Targets({"chat": Target(endpoint="chat", container=ContainerKind.OURS)})
    settings = ProxySettings(HOST, PROXY_PORT)
    asyncio.run(serve(targets, Aws("us-east-1"), settings, asyncio.Event(), lambda url: None))


@main.command()
@click.argument("streams", type=int)
@click.option("--whole", is_flag=True)
def clients(streams: int, whole: bool) -> None:
    """Send all requests at once and read all answers."""
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": not whole}
    url = f"http://{HOST}:{PROXY_PORT}/v1/chat/completions"

    async def one(http: aiohttp.ClientSession) -> int:
        async with http.post(url, json=body) as answer:
            text = await answer.text()
            assert answer.status == 200, text
            return text.count(" word")

    async def run() -> None:
        started = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            counts = await asyncio.gather(*(one(http) for _ in range(streams)))
        print(f"{streams} answers, {sum(counts)} tokens in {time.monotonic() - started:.1f} s")

    asyncio.run(run())


if __name__ == "__main__":
    main()
