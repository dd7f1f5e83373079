"""The two ways to an endpoint: HTTP, and SageMaker's runtime."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from benchmarks.endpoint.apis import Api, EventReader, Options
from benchmarks.endpoint.outcome import Outcome
from benchmarks.endpoint.workload import Prompt
from benchmarks.load.generator import Connection
from benchmarks.load.routes import LoadError

SAGEMAKER = "sagemaker:"


class Transport(Protocol):
    """Sends one request and yields the pieces of its body as they come. Raises LoadError."""

    def pieces(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """Send a body."""

    def close(self) -> None:
        """Close what is open."""


class Http:
    """Requests over HTTP; later requests reuse connections."""

    def __init__(self, url: str, path: str, headers: dict[str, str]) -> None:
        self._url, self._path, self._headers = url, path, headers
        self._idle: list[Connection] = []

    async def pieces(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """Send a body on an idle connection, or on a new one."""
        has_begun = False
        while True:
            is_new = not self._idle
            connection = Connection(self._url, self._headers) if is_new else self._idle.pop()
            try:
                async for piece in connection.post(self._path, body):
                    has_begun = True
                    yield piece
            except (OSError, EOFError):
                connection.close()
                if is_new or has_begun:
                    raise
                continue  # the server had closed the idle connection
            except BaseException:
                connection.close()  # in the middle of an answer
                raise
            self._idle.append(connection)
            return

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()


class SageMaker:
    """Requests to an endpoint by its name, with the credentials that boto3 finds."""

    def __init__(self, name: str, region: str | None = None) -> None:
        import boto3  # which HTTP endpoints do not need
        from botocore.config import Config

        self._name = name
        config = Config(max_pool_connections=256, retries={"max_attempts": 0}, read_timeout=600)
        self._client = boto3.client("sagemaker-runtime", region_name=region, config=config)

    async def pieces(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """Send a body; the client of boto3 blocks, so it runs in a thread."""
        try:
            parts = await asyncio.to_thread(self._invoke, body)
            while (part := await asyncio.to_thread(next, parts, None)) is not None:
                yield part
        except LoadError:
            raise
        except Exception as error:  # botocore makes its classes at run time
            raise LoadError(f"{type(error).__name__} {error}"[:300]) from error

    def close(self) -> None:
        """Nothing is open between requests."""

    def _invoke(self, body: dict[str, Any]) -> Iterator[bytes]:
        answer = self._client.invoke_endpoint_with_response_stream(
            EndpointName=self._name,
            ContentType="application/json",
            Body=json.dumps(body).encode(),
        )
        return (_part(event) for event in answer["Body"])


def _part(event: dict[str, Any]) -> bytes:
    if "PayloadPart" not in event:
        name, problem = next(iter(event.items()))
        raise LoadError(f"{name}: {problem.get('Message', '')}"[:300])
    piece: bytes = event["PayloadPart"]["Bytes"]
    return piece


async def send(
    transport: Transport, api: Api, prompt: Prompt, options: Options, outcome: Outcome, start: float
) -> None:
    """Send a request and fill in its outcome; `start` is perf_counter's time of the level."""
    reader = EventReader()
    outcome.sent_at = time.perf_counter() - start
    try:
        async for piece in transport.pieces(api.body(prompt, options)):
            now = time.perf_counter() - start
            for event in reader.feed(piece):
                if api.read(event, outcome):
                    outcome.piece_at.append(now)
        for event in reader.finish():
            if api.read(event, outcome):
                outcome.piece_at.append(time.perf_counter() - start)
        if not outcome.piece_at:
            outcome.error = "an answer without text"
    except (LoadError, OSError, EOFError, ValueError) as error:
        outcome.error = _kind(error)
    outcome.ended_at = time.perf_counter() - start
    outcome.tokens = outcome.tokens or len(outcome.piece_at)


def _kind(error: BaseException) -> str:
    """Describe an error in a few words, so that equal ones are counted together."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = str(error).strip()
    if isinstance(error, LoadError):
        return text[:160]
    return f"{type(error).__name__}: {text}"[:160]
