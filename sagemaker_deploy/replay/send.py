"""Sends recorded requests to a URL or an endpoint, with the seeds that they had."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from sagemaker_deploy import invoke as calls
from sagemaker_deploy.aws import INVOKE_READ_TIMEOUT_S, STREAM_READ_TIMEOUT_S, Aws
from sagemaker_deploy.errors import DeployError, InvocationFailed
from sagemaker_deploy.load import tokens_of
from sagemaker_deploy.proxy.translation.answers import (
    WITH_REPLAY_INFO,
    parse_replay_info,
    read_answer,
)
from sagemaker_deploy.proxy.translation.events import Json
from sagemaker_deploy.replay.records import Recorded
from sagemaker_deploy.service_model import CUSTOM_ATTRIBUTES

TIMEOUT_S = 500


@dataclass(frozen=True, slots=True)
class Replayed:
    """An answer, or an error. Times in seconds; `replay_info` if the container gives it."""

    answer: Any
    latency_s: float
    first_s: float
    tokens: int = 0
    replay_info: Json | None = None
    error: str = ""


class Sender(Protocol):
    """Sends one body; yields the answer's parts, and returns the custom attributes."""

    def __call__(self, body: bytes, attributes: str) -> "Response":
        """Send a body with custom attributes. Raises DeployError."""
        ...


@dataclass(frozen=True, slots=True)
class Response:
    """Parts of an answer, and the custom attributes that came with it."""

    parts: Iterator[bytes]
    attributes: str


class SendFailed(InvocationFailed):
    """The target answered with an error, or not at all."""


def to_url(url: str, key: str | None = None) -> Sender:
    """Send to a container's `/invocations`."""
    target = url.rstrip("/")
    target = target if target.endswith("/invocations") else f"{target}/invocations"
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}

    def send(body: bytes, attributes: str) -> Response:
        request = urllib.request.Request(target, body, headers | {CUSTOM_ATTRIBUTES: attributes})
        try:
            answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(500).decode(errors="replace")
            raise SendFailed(f"HTTP {error.code}: {text}") from error
        except OSError as error:
            raise SendFailed(f"no answer: {error}") from error
        return Response(_parts(answer), answer.headers.get(CUSTOM_ATTRIBUTES) or "")

    return send


def _parts(answer: Any) -> Iterator[bytes]:
    with answer:
        while part := answer.read1(65536):
            yield part
        if answer.length:  # `read1` does not say that bytes of Content-Length are missing
            raise http.client.IncompleteRead(b"", answer.length)


def to_endpoint(aws: Aws, address: calls.Address) -> Sender:
    """Send to an endpoint; recorded streams are streamed."""

    def send(body: bytes, attributes: str) -> Response:
        params = address.params() | {"Body": body, "ContentType": "application/json"}
        params["CustomAttributes"] = attributes
        is_stream = json.loads(body).get("stream") is True
        operation = "invoke_endpoint" + "_with_response_stream" * is_stream
        timeout_s = STREAM_READ_TIMEOUT_S if is_stream else INVOKE_READ_TIMEOUT_S
        answer = aws.call(calls.RUNTIME, operation, timeout_s, **params)
        parts = aws.stream_events(answer["Body"]) if is_stream else iter([answer["Body"].read()])
        return Response(parts, answer.get("CustomAttributes") or "")

    return send


def replay(record: Recorded, send: Sender, seed: int | None = None) -> Replayed:
    """Send a recorded request; `seed` is for those whose own is not known. Errors are returned."""
    body = json.dumps(with_seed(record, seed)).encode()
    attributes = ",".join(
        filter(None, [f"route={record.path}" if record.path else "", WITH_REPLAY_INFO])
    )
    started = time.perf_counter()
    first_s = 0.0
    content = b""
    try:
        response = send(body, attributes)
        for part in response.parts:
            first_s = first_s or time.perf_counter() - started
            content += part
        latency_s = time.perf_counter() - started
        answer = read_answer(content, record.body)
        info = parse_replay_info(response.attributes)
        return Replayed(answer, latency_s, first_s, tokens_of(answer), info)
    except Exception as error:  # cut, or of an unknown form: the other records are still sent
        text = str(error) if isinstance(error, DeployError) else repr(error)
        return Replayed(None, time.perf_counter() - started, first_s, error=text[:500])


def with_seed(record: Recorded, seed: int | None) -> Json:
    """Return the body with the seed that its answer had, where its API takes one."""
    known = (record.replay_info or {}).get("seed", seed)
    known = _seed_of(record.answer) if known is None else known
    body = dict(record.body)
    if known is None:
        return body
    if "inputs" in body:
        parameters = body.get("parameters") or {}
        return body | {"parameters": {"seed": known, **parameters}}
    is_text = "prompt" in body or ("messages" in body and record.path != "/v1/messages")
    return {"seed": known, **body} if is_text else body


def _seed_of(answer: Any) -> int | None:
    """Return the seed in the details of a generate answer."""
    first = answer[0] if isinstance(answer, list) and answer else answer
    details = first.get("details") if isinstance(first, dict) else None
    seed = details.get("seed") if isinstance(details, dict) else None
    return seed if isinstance(seed, int) else None
