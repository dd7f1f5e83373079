"""The client side: closed-loop clients that stream over HTTP, and a prober of /ping.

One asyncio loop on plain sockets, since the load generator shares the processors with the server
that it measures: a general HTTP library costs several times as much for each token. Every client
keeps one connection; every ping opens its own, as a health checker does.
"""

import asyncio
import contextlib
import gc
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load.routes import LoadError, Route
from benchmarks.report.figures import Round, Stream

PING_INTERVAL_S = 0.05
ROUND_LIMIT_S = 1800.0


class Connection:
    """One HTTP/1.1 connection; answers are read to their end before the next request."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise LoadError(f"{url}: only http:// and https:// addresses are measured")
        self._is_secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if self._is_secure else 80)
        self._prefix = parts.path.rstrip("/")
        self._headers = [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Connect, unless it is connected."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(
                self._host, self._port, ssl=self._is_secure or None
            )

    def close(self) -> None:
        """Hang up; the next request connects again."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def get(self, path: str) -> tuple[int, bytes]:
        """Ask for a page; return the status and the body."""
        status, chunks = await self._send("GET", path, b"")
        return status, b"".join([chunk async for chunk in chunks])

    async def post(self, path: str, body: object) -> AsyncIterator[bytes]:
        """Post JSON; yield the body's pieces as they come. Raises LoadError unless it is a 200."""
        status, chunks = await self._send("POST", path, json.dumps(body).encode())
        if status != 200:
            text = b"".join([chunk async for chunk in chunks])
            raise LoadError(f"{path}: {status} {text.decode(errors='replace')[:300]}")
        async for chunk in chunks:
            yield chunk

    async def _send(self, method: str, path: str, body: bytes) -> tuple[int, AsyncIterator[bytes]]:
        await self.open()
        assert self._writer is not None
        assert self._reader is not None
        lines = [
            f"{method} {self._prefix}{path} HTTP/1.1",
            f"Host: {self._host}:{self._port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *self._headers,
        ]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = head.split("\r\n")
        pairs = [line.split(":", 1) for line in rest if ":" in line]
        headers = {name.strip().lower(): value.strip().lower() for name, value in pairs}
        return int(first.split()[1]), self._body(headers)

    async def _body(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        reader = self._reader
        assert reader is not None
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                yield (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        elif "content-length" in headers:
            if length := int(headers["content-length"]):
                yield await reader.readexactly(length)
        elif headers.get("connection") == "close":
            while piece := await reader.read(2**16):
                yield piece
        if headers.get("connection") == "close":
            self.close()


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and the route that is measured."""

    url: str
    route: Route


def run_round(target: Target, prompts: list[list[str]], new_tokens: int, *, ping: bool) -> Round:
    """Let each client send its prompts one after another. Raises LoadError."""
    with _no_collector():
        return asyncio.run(_run_round(target, prompts, new_tokens, ping=ping))


async def _run_round(
    target: Target, prompts: list[list[str]], new_tokens: int, *, ping: bool
) -> Round:
    url = target.url
    pings: list[float | None] = []
    prober = asyncio.create_task(_probe(url, pings)) if ping else None
    connections = [Connection(url) for _ in prompts]
    try:
        await asyncio.gather(*(connection.open() for connection in connections))
        async with asyncio.timeout(ROUND_LIMIT_S):
            clients = (
                _client(connection, target.route, own, new_tokens)
                for connection, own in zip(connections, prompts, strict=True)
            )
            streams = await asyncio.gather(*clients)
    except (OSError, EOFError) as error:  # a time-out is an OSError
        raise LoadError(f"{url}: {type(error).__name__} {error}") from error
    finally:
        for connection in connections:
            connection.close()
        if prober is not None:
            prober.cancel()
    answered = [seconds for seconds in pings if seconds is not None]
    return Round(list(itertools.chain(*streams)), answered, len(pings) - len(answered))


async def _client(
    connection: Connection, route: Route, prompts: list[str], new_tokens: int
) -> list[Stream]:
    return [await _request(connection, route, prompt, new_tokens) for prompt in prompts]


async def _request(connection: Connection, route: Route, prompt: str, new_tokens: int) -> Stream:
    body = route.body(prompt, new_tokens)
    token_at: list[float] = []
    prompt_tokens = None
    unread = b""
    sent_at = time.perf_counter()
    async for chunk in connection.post(route.path, body):
        now = time.perf_counter()
        *events, unread = (unread + chunk).split(b"\n\n")
        for event in map(_parse, events):
            if event is not None:
                has_token, length = route.read(event)
                token_at += [now] * has_token
                prompt_tokens = prompt_tokens if length is None else length
    if not token_at:
        raise LoadError("a stream ended without a token")
    return Stream(sent_at, token_at, prompt_tokens)


def _parse(event: bytes) -> dict[str, Any] | None:
    """Read one server-sent event; None for the end, and for what keeps the connection alive."""
    if not event.startswith(b"data:") or event == b"data: [DONE]":
        return None
    value: dict[str, Any] = json.loads(event[5:])
    return value


async def _probe(url: str, pings: list[float | None]) -> None:
    """Ping at a steady rate: a slow answer does not put off the next ping."""
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(_ping(url, pings))
            await asyncio.sleep(PING_INTERVAL_S)


async def _ping(url: str, pings: list[float | None]) -> None:
    connection = Connection(url)
    started = time.perf_counter()
    try:
        status, _ = await connection.get("/ping")
    except (OSError, EOFError):
        status = 0
    finally:
        connection.close()
    pings.append(time.perf_counter() - started if status == 200 else None)


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """A collection in this process would look like a pause of the server."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
