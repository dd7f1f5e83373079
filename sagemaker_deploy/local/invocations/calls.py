"""Checks invocations as the service does, runs them in a container and returns the response.

Limits are the service's own: 25 MB (serverless 4 MB), 60 s, a stream 8 minutes, inline bodies of
asynchronous calls 128,000 bytes.
"""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flask import Response, request

from sagemaker_deploy import service_model
from sagemaker_deploy.local import refusals
from sagemaker_deploy.local.containers.exchange import Exchange, Failure
from sagemaker_deploy.local.control_plane.adapters import IDENTIFIER
from sagemaker_deploy.local.control_plane.endpoints import Endpoints
from sagemaker_deploy.local.control_plane.units import Target
from sagemaker_deploy.local.invocations import event_stream
from sagemaker_deploy.local.invocations.multi_model import Models

NEW_SESSION = "X-Amzn-SageMaker-New-Session-Id"
SESSION = "X-Amzn-SageMaker-Session-Id"
NEW_SESSION_ID = "NEW_SESSION"
CLOSED_SESSION = "X-Amzn-SageMaker-Closed-Session-Id"
VARIANT = "x-Amzn-Invoked-Production-Variant"


@dataclass(frozen=True, slots=True)
class Limits:
    """The service's limits; tests shorten the times."""

    body_bytes: int = 25 * 1024 * 1024
    serverless_body_bytes: int = 4 * 1024 * 1024
    async_inline_bytes: int = 128_000
    invoke_s: float = 60.0
    stream_s: float = 480.0


@dataclass(frozen=True, slots=True)
class Call:
    """One checked invocation: its target and the container's request."""

    target: Target
    headers: dict[str, str]
    fields: Mapping[str, Any]
    body: bytes
    path: str = "/invocations"


class Runtime:
    """Executes invocations."""

    def __init__(self, endpoints: Endpoints, models: Models, limits: Limits, region: str) -> None:
        self._endpoints = endpoints
        self._models = models
        self._limits = limits
        self._region = region

    def read_call(self, operation: str, endpoint: str) -> Call:
        """Check the current request as the service does. Raises Refusal."""
        try:
            fields = service_model.read_headers(
                service_model.RUNTIME, operation, request.headers.get
            )
        except service_model.ShapeError as error:
            raise refusals.validation(str(error)) from error
        target = self._endpoints.route(
            endpoint, fields.get("TargetVariant"), fields.get("InferenceComponentName")
        )
        body = request.get_data()
        self._check_size(target, body, operation)
        is_async_call = operation == "InvokeEndpointAsync"
        if target.is_async != is_async_call:
            kind = "an asynchronous" if target.is_async else "not an asynchronous"
            raise refusals.validation(f"Endpoint {endpoint} is {kind} endpoint.")
        headers = container_headers(fields, operation)
        if target.unit.base:
            headers[IDENTIFIER] = target.unit.name
        return Call(target, headers, fields, body, self._path(target, fields))

    def _path(self, target: Target, fields: Mapping[str, Any]) -> str:
        prefix, name = target.multi_model_prefix, fields.get("TargetModel")
        if prefix is None:
            if name:
                raise refusals.validation(
                    f"Endpoint {target.endpoint} is not a multi-model endpoint: TargetModel."
                )
            return "/invocations"
        if not name:
            raise refusals.validation("TargetModel header is needed for multi-model endpoints.")
        return self._models.path(target.container, prefix, name)

    def invoke(self, call: Call, timeout_s: float | None = None) -> Response:
        """Return the container's whole response. Raises Refusal."""
        try:
            with self._open(call, timeout_s or self._limits.invoke_s) as exchange:
                body = exchange.read()
                status, headers = exchange.status, exchange.headers
        except TimeoutError as error:
            raise self._timed_out(call) from error
        except Failure as error:
            raise self._unreachable(call) from error
        if status >= 400:
            raise self._model_error(call, status, body)
        answer = Response(body, 200, content_type=headers.get("Content-Type"))
        return _with_headers(answer, headers.get, call)

    def stream(self, call: Call) -> Response:
        """Yield the container's response as event-stream frames as it arrives. Raises Refusal."""
        try:
            exchange = self._open(call, self._limits.stream_s)
        except TimeoutError as error:
            raise self._timed_out(call) from error
        except Failure as error:
            raise self._unreachable(call) from error
        if exchange.status >= 400:
            with exchange:
                raise self._model_error(call, exchange.status, exchange.read())
        answer = Response(_frames(exchange), 200, content_type=event_stream.CONTENT_TYPE)
        answer.headers["X-Amzn-SageMaker-Content-Type"] = exchange.headers.get("Content-Type", "")
        return _with_headers(answer, exchange.headers.get, call)

    def pass_through(self, endpoint: str, component: str | None, path: str) -> Response:
        """Serve the OpenAI-compatible route: the container's bytes or stream, unchanged."""
        target = self._endpoints.route(endpoint, component=component)
        headers = {"Content-Type": request.headers.get("Content-Type", "application/json")}
        call = Call(target, headers, {}, request.get_data(), path)
        self._check_size(target, call.body, "")
        try:
            exchange = self._open(call, self._limits.stream_s)
        except Failure as error:
            raise self._unreachable(call) from error
        answer = Response(_bytes(exchange), exchange.status)
        answer.headers["Content-Type"] = exchange.headers.get("Content-Type", "")
        return answer

    def _open(self, call: Call, timeout_s: float) -> Exchange:
        port = call.target.container.port
        return Exchange(port, call.path, call.headers, call.body, timeout_s=timeout_s)

    def _check_size(self, target: Target, body: bytes, operation: str) -> None:
        if operation == "InvokeEndpointAsync" and len(body) > self._limits.async_inline_bytes:
            raise refusals.too_large(self._limits.async_inline_bytes)
        if target.is_serverless and len(body) > self._limits.serverless_body_bytes:
            raise refusals.validation(f"Request {uuid.uuid4()} has oversize body.")
        if len(body) > self._limits.body_bytes:
            raise refusals.too_large(self._limits.body_bytes)

    def _model_error(self, call: Call, status: int, body: bytes) -> refusals.Refusal:
        target = call.target
        return refusals.model_error(
            target.endpoint, target.container_name, status, body, self._region
        )

    def _timed_out(self, call: Call) -> refusals.Refusal:
        return refusals.timed_out(call.target.endpoint, call.target.container_name, self._region)

    def _unreachable(self, call: Call) -> refusals.Refusal:
        return refusals.unreachable(call.target.endpoint, call.target.container_name, self._region)


def container_headers(fields: Mapping[str, Any], operation: str) -> dict[str, str]:
    """Build the container's headers from the client API's header names."""
    own = {"ContentType": "Content-Type", "Accept": "Accept"}
    names = service_model.header_names(service_model.RUNTIME, operation) | own
    own_business = {"InputLocation", "S3OutputPathExtension", "Filename", "RequestTTLSeconds"}
    own_business.add("InvocationTimeoutSeconds")
    headers = {
        names[field]: str(value) for field, value in fields.items() if field not in own_business
    }
    headers.setdefault("Content-Type", "application/octet-stream")
    headers["X-Amzn-SageMaker-Forwarded-Api"] = f"SageMakerRuntime:{operation}"
    return headers


def _frames(exchange: Exchange) -> Iterator[bytes]:
    with exchange:
        try:
            for piece in exchange.pieces():
                yield event_stream.payload_part(piece)
        except TimeoutError:
            yield event_stream.stream_error(
                "ModelInvocationTimeExceeded", "The model did not finish within the time limit."
            )
        except Failure:
            yield event_stream.stream_error("StreamBroken", "The container broke the stream off.")


def _bytes(exchange: Exchange) -> Iterator[bytes]:
    with exchange:
        yield from exchange.pieces()


def _with_headers(answer: Response, header: service_model.Lookup, call: Call) -> Response:
    answer.headers[VARIANT] = call.target.variant
    if attributes := header(service_model.CUSTOM_ATTRIBUTES):
        answer.headers[service_model.CUSTOM_ATTRIBUTES] = attributes
    # Containers return a new session in either of two headers; clients get one header, if they
    # asked for a session by its constant.
    session = header(NEW_SESSION) or header(SESSION) or ""
    if call.fields.get("SessionId") == NEW_SESSION_ID and "Expires=" in session:
        answer.headers[NEW_SESSION] = session
    if closed := header(CLOSED_SESSION):
        answer.headers[CLOSED_SESSION] = closed
    return answer
