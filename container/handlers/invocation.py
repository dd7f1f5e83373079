"""Runs one invocation through the user's functions, with the toolkits' defaults for missing ones.

A body that `input_fn` refuses is the client's fault (400), and an exception with a `status_code`
keeps it. Every other exception is the user code's fault (500), whose traceback goes to the log, not
to the client.
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

from container import body_lines, content
from container.errors import (
    HandlerFailed,
    InvalidParameter,
    MalformedRequest,
    ModelLoadError,
    ServingError,
    UnsupportedMediaType,
    one_line,
    text_of,
)
from container.handlers.answer_encoding import (
    Answer,
    answer_head,
    encode_part,
    is_stream,
    raw_body,
    refusal,
    stream_content_type,
    with_content_type,
)
from container.handlers.context import Context
from container.handlers.hooks import Hook, Hooks
from container.messages.handler import AnswerHead, AnswerPart, Invoke

log = logging.getLogger(__name__)

CLIENTS_FAULT = (ValueError, KeyError, TypeError, IndexError)
# While an async function runs: how often to check whether its client has left.
DISCONNECT_POLL_S = 0.5
END = object()


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
            self._model = self._resolve(hook(str(self._model_dir), context=context), None)
        except Exception as error:
            log.exception("handler: model_fn failed; the container stops")
            raise ModelLoadError(f"model_fn failed: {one_line(error)}") from error

    def answer(self, invoke: Invoke, is_cancelled: threading.Event) -> Iterator[Answer]:
        """Run the functions. Raises ServingError, or ClientDisconnected."""
        context = Context(self._model_dir, self._gpu_id, invoke.headers)
        accept = self._choose(invoke.accept)
        try:
            result = self._predict(invoke, accept, context, is_cancelled)
            result, kind = with_content_type(result, context.response_content_type)
            if is_stream(result):
                yield from self._stream(
                    invoke.request_id, result, kind, accept, context, is_cancelled
                )
            else:
                kind = kind or accept
                data = raw_body(result) if self._writes_bodies else None
                data = content.encode(result, kind) if data is None else data
                yield _head(invoke.request_id, kind, context, is_stream=False)
                yield AnswerPart(invoke.request_id, data, is_last=True)
        except (ServingError, ClientDisconnected):
            raise
        except Exception as error:
            status = getattr(error, "status_code", None)
            if isinstance(status, int) and 400 <= status < 600:
                message = getattr(error, "message", None)
                text = message if isinstance(message, str) else text_of(error)
                yield from refusal(invoke.request_id, status, text)
                return
            log.exception("handler: user code failed; the client gets an error")
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
            return self._resolve(hook(*arguments, context=context), is_cancelled)

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
        if is_stream(prediction):
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
            log.warning("handler: input_fn refused a body; status 400", exc_info=error)
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
            log.warning("handler: the model refused its inputs; status 400", exc_info=error)
            raise InvalidParameter(f"the model refused its inputs: {one_line(error)}") from error

    def _stream(
        self,
        request_id: int,
        result: Any,
        kind: str | None,
        accept: str,
        context: Context,
        is_cancelled: threading.Event,
    ) -> Iterator[Answer]:
        """Send the head with the first part, so that a failure before it has its own status."""
        ends_line, has_begun = True, False
        for part in self._parts(result, is_cancelled):
            part, own_kind = with_content_type(part, None)
            if not has_begun:
                kind = kind or own_kind or stream_content_type(part, accept)
                has_begun = True
                yield _head(request_id, kind, context, is_stream=True)
            data = encode_part(part, kind or content.TEXT)
            ends_line = data.endswith(b"\n") if data else ends_line
            if data:
                yield AnswerPart(request_id, data, is_last=False)
        if not has_begun:
            yield _head(request_id, kind or content.TEXT, context, is_stream=True)
        # SageMaker's line readers wait forever for the end of an unfinished last line.
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
            while (part := self._resolve(anext(result, END), is_cancelled)) is not END:
                yield part
        finally:
            if hasattr(result, "aclose"):
                self._resolve(result.aclose(), None)

    def _resolve(self, value: Any, is_cancelled: threading.Event | None) -> Any:
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


def _head(request_id: int, kind: str, context: Context, *, is_stream: bool) -> AnswerHead:
    chosen = context.response_headers
    return answer_head(request_id, context.response_status, kind, is_stream, chosen)


def _are_bodies(inputs: Any) -> bool:
    """Whether inputs are records of JSON Lines, each of which is a whole body."""
    is_list = isinstance(inputs, list) and bool(inputs)
    return is_list and all(isinstance(record, dict) and "inputs" in record for record in inputs)


def _toolkit_body(invoke: Invoke) -> str | bytes:
    if content.media_type(invoke.content_type) in content.TEXT_TYPES:
        return body_lines.text(invoke.body)
    return invoke.body
