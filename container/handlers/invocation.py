"""One invocation through the user's functions, with the toolkits' defaults for those not given.

Known errors keep their meaning: what `input_fn` cannot read is the client's fault (400), an
exception with a `status_code` keeps it, all else is the user code's (500) and its traceback goes
to the log, not to the client.
"""

import asyncio
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import Any

from container import content
from container.errors import (
    HandlerFailed,
    InvalidParameter,
    MalformedRequest,
    ModelLoadError,
    ServingError,
    UnsupportedMediaType,
    one_line,
)
from container.handlers.context import Context
from container.handlers.hooks import Hook, Hooks
from container.messages.handler import AnswerHead, AnswerPart, Invoke

log = logging.getLogger(__name__)

CLIENTS_FAULT = (ValueError, KeyError, TypeError, IndexError)
# While an async function runs: how often to check whether its client has left.
DISCONNECT_POLL_S = 0.5
END = object()
Answer = AnswerHead | AnswerPart


class ClientDisconnected(Exception):
    """The client of this invocation has left."""


class Handler:
    """The loaded model and the user's functions; several threads may use it at a time."""

    def __init__(
        self,
        hooks: Hooks,
        model_dir: Path,
        make_model: Callable[[], Any] | None,
        *,
        default_accept: str = content.JSON,
        gpu_id: int | None = None,
    ) -> None:
        self._hooks = hooks
        self._model_dir = model_dir
        self._default_accept = default_accept
        self._gpu_id = gpu_id
        self._make_model = make_model
        self._model: Any = None
        self._loop = asyncio.new_event_loop()

    @property
    def is_concurrent(self) -> bool:
        """Whether several invocations may run at a time: with the engine, or async functions."""
        has_async = any(hook.is_async for name, hook in self._hooks.items() if name != "model_fn")
        return has_async or self._make_model is not None

    def load(self) -> None:
        """Load the model. Raises ModelLoadError when the user's model_fn fails."""
        threading.Thread(target=self._loop.run_forever, name="async", daemon=True).start()
        hook = self._hooks.get("model_fn")
        if hook is None:
            self._model = self._make_model() if self._make_model is not None else None
            return
        context = Context(self._model_dir, self._gpu_id)
        try:
            self._model = self._settle(hook(str(self._model_dir), context=context), None)
        except Exception as error:
            log.exception("model_fn failed; the container stops")
            raise ModelLoadError(f"model_fn failed: {one_line(error)}") from error

    def answer(self, invoke: Invoke, is_cancelled: threading.Event) -> Iterator[Answer]:
        """Run the functions. Raises ServingError, or ClientDisconnected."""
        context = Context(self._model_dir, self._gpu_id, invoke.headers)
        accept = self._choose(invoke.accept)
        try:
            result = self._predict(invoke, accept, context, is_cancelled)
            result, kind = _with_type(result, context.response_content_type)
            if _is_stream(result):
                yield from self._stream(
                    invoke.request_id, result, kind, accept, context, is_cancelled
                )
            else:
                kind = kind or accept
                data = _raw(result) if self._writes_bodies else None
                data = content.encode(result, kind) if data is None else data
                yield self._head(invoke.request_id, kind, context, is_stream=False)
                yield AnswerPart(invoke.request_id, data, is_last=True)
        except (ServingError, ClientDisconnected):
            raise
        except Exception as error:
            status = getattr(error, "status_code", None)
            if isinstance(status, int) and 400 <= status < 600:
                message = str(getattr(error, "message", error))
                yield from _refusal(invoke.request_id, status, message)
                return
            log.exception("user code failed")
            raise HandlerFailed(f"user code failed: {one_line(error)}") from error

    @property
    def _writes_bodies(self) -> bool:
        """Whether the user's code encodes the answer; then a string is not encoded as JSON."""
        return bool({"output_fn", "transform_fn"} & self._hooks.keys())

    def _choose(self, header: str) -> str:
        """Choose the content type. Raises NotAcceptable if this server cannot encode it."""
        if self._writes_bodies:
            names = content.by_quality(header)
            return self._default_accept if not names or "*" in names[0] else names[0]
        return content.choose(header, content.ENCODERS, self._default_accept)

    def _predict(
        self, invoke: Invoke, accept: str, context: Context, is_cancelled: threading.Event
    ) -> Any:
        def run(hook: Hook, *arguments: Any) -> Any:
            return self._settle(hook(*arguments, context=context), is_cancelled)

        body = _toolkit_body(invoke)
        kind = content.media_type(invoke.content_type)
        if transform := self._hooks.get("transform_fn"):
            return run(transform, self._model, body, kind, accept)
        data = self._read(invoke, body, kind, run)
        predict, output = self._hooks.get("predict_fn"), self._hooks.get("output_fn")
        if predict is not None:
            prediction = run(predict, data, self._model)
        else:
            prediction = self._default_predict(data)
        if output is None:
            return prediction
        if _is_stream(prediction):
            return (run(output, part, accept) for part in self._parts(prediction, is_cancelled))
        return run(output, prediction, accept)

    def _read(self, invoke: Invoke, body: str | bytes, kind: str, run: Callable[..., Any]) -> Any:
        hook = self._hooks.get("input_fn")
        if hook is None:
            return content.decode(invoke.body, invoke.content_type)
        try:
            return run(hook, body, kind)
        except CLIENTS_FAULT as error:
            if isinstance(getattr(error, "status_code", None), int):
                raise
            if kind not in content.DECODERS:
                raise UnsupportedMediaType(
                    f"content type {kind!r} is not supported: input_fn: {one_line(error)}"
                ) from error
            log.warning("input_fn refused a body", exc_info=error)
            raise MalformedRequest(f"input_fn: {one_line(error)}") from error

    def _default_predict(self, data: Any) -> Any:
        """The Hugging Face toolkit's: `inputs` to the model, `parameters` as its keywords."""
        model = self._model
        if getattr(model, "accepts_raw_body", False):
            return model(data)
        inputs: Any = data
        parameters: Any = {}
        if isinstance(data, dict):
            rest = dict(data)
            inputs, parameters = rest.pop("inputs", rest), rest.pop("parameters", None) or {}
        if _are_bodies(inputs):
            return [self._default_predict(record) for record in inputs]
        if not isinstance(parameters, dict):
            raise InvalidParameter("`parameters` must be an object", field="parameters")
        if not getattr(model, "raises_client_errors", False):
            return model(inputs, **parameters)
        try:
            return model(inputs, **parameters)
        except CLIENTS_FAULT as error:
            log.warning("the model refused its inputs", exc_info=error)
            raise InvalidParameter(f"the model cannot take this: {one_line(error)}") from error

    def _stream(
        self,
        request_id: int,
        result: Any,
        kind: str | None,
        accept: str,
        context: Context,
        is_cancelled: threading.Event,
    ) -> Iterator[Answer]:
        """The head goes out with the first part, so that a failure before it has its own status."""
        ends_line, has_begun = True, False
        for part in self._parts(result, is_cancelled):
            part, own_kind = _with_type(part, None)
            if not has_begun:
                kind = kind or own_kind or _stream_kind(part, accept)
                has_begun = True
                yield self._head(request_id, kind, context, is_stream=True)
            data = _stream_bytes(part, kind or content.TEXT)
            ends_line = data.endswith(b"\n") if data else ends_line
            if data:
                yield AnswerPart(request_id, data, is_last=False)
        if not has_begun:
            yield self._head(request_id, kind or content.TEXT, context, is_stream=True)
        # SageMaker's line readers wait for ever for the end of an unfinished last line.
        yield AnswerPart(request_id, b"" if ends_line else b"\n", is_last=True)

    def _parts(self, result: Any, is_cancelled: threading.Event) -> Iterator[Any]:
        if isinstance(result, AsyncIterator):
            result = self._from_async(result, is_cancelled)
        try:
            for part in result:
                if is_cancelled.is_set():
                    raise ClientDisconnected
                yield part
        finally:
            if hasattr(result, "close"):
                result.close()

    def _from_async(
        self, result: AsyncIterator[Any], is_cancelled: threading.Event
    ) -> Iterator[Any]:
        try:
            while (part := self._settle(anext(result, END), is_cancelled)) is not END:
                yield part
        finally:
            if hasattr(result, "aclose"):
                self._settle(result.aclose(), None)

    def _settle(self, value: Any, is_cancelled: threading.Event | None) -> Any:
        """Wait for an awaitable; return any other value unchanged."""
        if not inspect.isawaitable(value):
            return value

        async def wait() -> Any:
            return await value

        future: Future[Any] = asyncio.run_coroutine_threadsafe(wait(), self._loop)
        while True:
            try:
                return future.result(DISCONNECT_POLL_S)
            except NotYet:
                if future.done():
                    raise  # the user's own time-out
                if is_cancelled is not None and is_cancelled.is_set():
                    future.cancel()
                    raise ClientDisconnected from None
            except CancelledError:
                raise ClientDisconnected from None

    def _head(self, request_id: int, kind: str, context: Context, *, is_stream: bool) -> AnswerHead:
        return AnswerHead(
            request_id, context.response_status, kind, is_stream, context.response_headers
        )


def _are_bodies(inputs: Any) -> bool:
    """Whether inputs are the records of JSON Lines that are bodies of their own."""
    is_list = isinstance(inputs, list) and bool(inputs)
    return is_list and all(isinstance(record, dict) and "inputs" in record for record in inputs)


def _toolkit_body(invoke: Invoke) -> str | bytes:
    if content.media_type(invoke.content_type) in content.TEXT_TYPES:
        return content.text(invoke.body)
    return invoke.body


def _with_type(value: Any, chosen: str | None) -> tuple[Any, str | None]:
    """Take apart sagemaker-inference's `(body, content_type)`."""
    is_pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str)
    if is_pair and "/" in value[1] and isinstance(value[0], str | bytes):
        return value[0], value[1]
    return value, chosen


def _raw(value: Any) -> bytes | None:
    """Return a body that the user's code has encoded; None for an object to encode."""
    if isinstance(value, str):
        return value.encode()
    return bytes(value) if isinstance(value, bytes | bytearray) else None


def _is_stream(value: Any) -> bool:
    return isinstance(value, AsyncIterator) or inspect.isgenerator(value)


def _stream_kind(part: Any, accept: str) -> str:
    if accept in (content.EVENTS, content.JSON_LINES, content.TEXT):
        return accept
    if isinstance(part, str):
        return f"{content.TEXT}; charset=utf-8"
    return content.BINARY if isinstance(part, bytes | bytearray) else content.JSON_LINES


def _stream_bytes(part: Any, kind: str) -> bytes:
    if isinstance(part, bytes | bytearray):
        return bytes(part)
    if content.media_type(kind) == content.EVENTS:
        if isinstance(part, str) and part.startswith(("data:", "event:", ":")):
            return part.encode()
        return b"data: " + content.encode(part, content.JSON) + b"\n\n"
    if isinstance(part, str):
        return part.encode()
    return content.encode(part, content.JSON_LINES)


def _refusal(request_id: int, status: int, message: str) -> Iterator[Answer]:
    body = {"error": message, "error_type": "validation" if status < 500 else "handler"}
    yield AnswerHead(request_id, status, content.JSON, is_stream=False)
    yield AnswerPart(request_id, content.encode(body, content.JSON), is_last=True)
