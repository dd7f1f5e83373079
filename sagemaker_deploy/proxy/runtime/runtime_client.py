"""InvokeEndpoint and InvokeEndpointWithResponseStream without blocking the event loop.

boto3 would hold a thread for each stream; this client holds a connection. Field names and headers
are those of botocore's model; frames are decoded by botocore.
"""

import io
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import aiohttp
from botocore.eventstream import EventStreamBuffer

from sagemaker_deploy import service_model
from sagemaker_deploy.proxy.runtime.failures import broken, from_event, from_response
from sagemaker_deploy.proxy.runtime.signing import Signer

JSON_TYPE = "application/json"
CONNECT_TIMEOUT_S = 10
# SageMaker ends an invocation after 60 s and a stream after 8 minutes; its error arrives first.
WHOLE_TIMEOUT_S = 75
STREAM_TIMEOUT_S = 500
READ_BYTES = 65536
STREAM_CONTENT_TYPE = "X-Amzn-SageMaker-Content-Type"
RETURNED_HEADERS = (
    service_model.CUSTOM_ATTRIBUTES,
    "X-Amzn-SageMaker-New-Session-Id",
    "X-Amzn-SageMaker-Closed-Session-Id",
    "x-Amzn-Invoked-Production-Variant",
)
WHOLE, STREAMED = "InvokeEndpoint", "InvokeEndpointWithResponseStream"
PATHS = {WHOLE: "invocations", STREAMED: "invocations-response-stream"}
BROKEN = (aiohttp.ClientError, TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call: an endpoint's name, header fields by botocore's names, and a JSON body."""

    endpoint: str
    body: bytes
    fields: Mapping[str, str] = field(default_factory=dict)


class Answer:
    """An answer whose parts are read as they arrive; close it in any case."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        parts: AsyncIterator[bytes],
        first: bytes,
        content_type: str,
    ) -> None:
        self._response = response
        self._parts = parts
        self._first = first
        self.content_type = content_type
        self.headers = {
            name: response.headers[name] for name in RETURNED_HEADERS if name in response.headers
        }

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the container's bytes. Raises CallFailed."""
        if self._first:
            yield self._first
        async for part in self._parts:
            yield part

    async def read(self) -> bytes:
        """Return all bytes. Raises CallFailed."""
        return b"".join([part async for part in self.parts()])

    def close(self) -> None:
        """End the call; the container sees a disconnect."""
        self._response.close()


class RuntimeClient:
    """Calls endpoints of one region over kept connections."""

    def __init__(self, url: str, signer: Signer, http: aiohttp.ClientSession) -> None:
        self._url = url.rstrip("/")
        self._signer = signer
        self._http = http

    async def open(self, invocation: Invocation, *, streamed: bool) -> Answer:
        """Send a call and wait for the first bytes of its answer. Raises CallFailed."""
        operation = STREAMED if streamed else WHOLE
        url = f"{self._url}/endpoints/{invocation.endpoint}/{PATHS[operation]}"
        headers = await self._signer.sign(url, _headers(operation, invocation), invocation.body)
        seconds = STREAM_TIMEOUT_S if streamed else WHOLE_TIMEOUT_S
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=seconds)
        try:
            body = io.BytesIO(invocation.body)  # sent in pieces: a large one delays no other
            response = await self._http.post(url, data=body, headers=headers, timeout=timeout)
        except BROKEN as error:
            raise broken(error) from error
        try:
            return await _answer(response, streamed=streamed)
        except BaseException:  # a cancelled call must not keep its connection
            response.close()
            raise


async def _answer(response: aiohttp.ClientResponse, *, streamed: bool) -> Answer:
    try:
        if response.status >= 400:
            code = response.headers.get("x-amzn-errortype", "")
            raise from_response(response.status, code, await response.read())
        parts = _payloads(response) if streamed else _bytes(response)
        first = await anext(parts, b"")
    except BROKEN as error:
        raise broken(error) from error
    name = STREAM_CONTENT_TYPE if streamed else "Content-Type"
    return Answer(response, parts, first, response.headers.get(name, ""))


def _headers(operation: str, invocation: Invocation) -> dict[str, str]:
    names = service_model.header_names(service_model.RUNTIME, operation)
    fields = {"ContentType": JSON_TYPE, "Accept": JSON_TYPE, **invocation.fields}
    return {names[name]: value for name, value in fields.items() if name in names}


async def _bytes(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for part in response.content.iter_chunked(READ_BYTES):
            yield part
    except BROKEN as error:
        raise broken(error) from error


async def _payloads(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Decode an event stream: yield payloads; an exception event is raised as CallFailed."""
    buffer = EventStreamBuffer()
    try:
        async for part in response.content.iter_any():
            buffer.add_data(part)
            for message in buffer:
                yield _payload(message.headers, message.payload)
    except BROKEN as error:
        raise broken(error) from error


def _payload(headers: Mapping[str, str], payload: bytes) -> bytes:
    kind = headers.get(":message-type", "event")
    if kind == "event":
        return payload if headers.get(":event-type") == "PayloadPart" else b""
    name = headers.get(":exception-type") or headers.get(":error-code") or kind
    raise from_event(str(name), payload)
