"""Answers one request: finds the endpoint, plans the invocation, streams or joins, logs a line."""

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from aiohttp import web

from sagemaker_deploy.proxy.endpoint import Endpoint
from sagemaker_deploy.proxy.error_bodies import error_body, error_event, has_form
from sagemaker_deploy.proxy.metrics import Metrics
from sagemaker_deploy.proxy.plans import Api, ClientRequest, Container, Plan, make_plan
from sagemaker_deploy.proxy.reading import Whole, read_whole, stream_bytes
from sagemaker_deploy.proxy.request_log import RequestLog
from sagemaker_deploy.proxy.request_stats import RequestStats, finish
from sagemaker_deploy.proxy.runtime.failures import CallFailed, Cause
from sagemaker_deploy.proxy.runtime.runtime_client import Answer
from sagemaker_deploy.proxy.runtime.sessions import session_key
from sagemaker_deploy.proxy.targets import Target, Targets
from sagemaker_deploy.proxy.translation.answers import WITH_REPLAY_INFO
from sagemaker_deploy.proxy.translation.unsupported import Unsupported
from sagemaker_deploy.service_model import CUSTOM_ATTRIBUTES

log = logging.getLogger(__name__)

# A client's header, the field of InvokeEndpoint.
FORWARDED = {
    CUSTOM_ATTRIBUTES: "CustomAttributes",
    "X-Amzn-SageMaker-Session-Id": "SessionId",
    "X-Amzn-SageMaker-Prefix-Aware-Id": "PrefixAwareId",
}
REQUEST_ID = "x-request-id"
LONGEST_ID = 64
LONGEST_HEADER = 1024
BODY_LIMIT = 25 * 1024 * 1024  # SageMaker's
# Our containers send the same header with an answer that their deadline has cut.
CUT = "X-Request-Deadline-Exceeded"
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class Refused(Exception):
    """The proxy itself refuses a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class RequestHandler:
    """Answers the requests of every API that reaches a model."""

    def __init__(
        self,
        targets: Targets,
        endpoints: Mapping[str, Endpoint],
        metrics: Metrics,
        log_file: RequestLog | None = None,
    ) -> None:
        self._targets = targets
        self._endpoints = endpoints
        self._metrics = metrics
        self._request_log = log_file

    async def answer(self, request: web.Request, api: Api, owner: str) -> web.StreamResponse:
        """Answer a request; an error has the form of its API."""
        stats = RequestStats(request.path, api, _request_id(request), owner)
        self._metrics.num_running += 1
        try:
            return await self._answer(request, stats)
        except (CallFailed, Unsupported, Refused) as error:
            return _error_response(stats, error)
        except Exception as error:  # a fault of the proxy; the middleware answers it with a 500
            stats.status, stats.error = 500, repr(error)
            raise
        finally:
            self._metrics.num_running -= 1
            finish(stats, self._metrics)

    async def _answer(self, request: web.Request, stats: RequestStats) -> web.StreamResponse:
        client, target = self._route(request.path, await read_body(request), stats)
        endpoint = self._endpoints[stats.model]
        plan = _plan(client, await endpoint.container(), target)
        key = session_key(request.headers, client.body)
        fields = _fields(request, stats.request_id)
        if self._request_log is not None:
            attributes = [fields.get("CustomAttributes", ""), WITH_REPLAY_INFO]
            fields["CustomAttributes"] = ",".join(filter(None, attributes))
        if client.wants_stream:
            stats.kind = "stream"
            answer = await endpoint.call(plan, fields, _as_it_is, key=key, on_retry=stats.add_retry)
            return await self._stream(request, client, answer, plan, stats)
        stats.kind = "joined" if plan.streams else "whole"
        read = partial(_whole, plan=plan)
        whole, answer = await endpoint.call(plan, fields, read, key=key, on_retry=stats.add_retry)
        await self._log_answer(client, whole.body, answer, stats)
        return _whole_response(whole, answer, stats)

    def _route(
        self, path: str, body: dict[str, Any], stats: RequestStats
    ) -> tuple[ClientRequest, Target]:
        """Find the model that a body names. Raises Refused."""
        name = body["model"] if isinstance(body.get("model"), str) else ""
        model_target = self._targets.find(name)
        if model_target is None:
            known = ", ".join(self._targets.models)
            raise Refused(404, f"`model` {name!r} is not known here; known are: {known}")
        stats.model, target = model_target
        is_alias = not name or name in self._targets.models
        return ClientRequest(stats.api, path, body, name, is_alias), target

    async def _stream(
        self,
        request: web.Request,
        client: ClientRequest,
        answer: Answer,
        plan: Plan,
        stats: RequestStats,
    ) -> web.StreamResponse:
        parts: list[bytes] | None = None if self._request_log is None else []
        response = await _send_stream(request, answer, plan, stats, parts)
        if parts and not stats.error:
            await self._log_answer(client, b"".join(parts), answer, stats)
        return response

    async def _log_answer(
        self, client: ClientRequest, content: bytes, answer: Answer, stats: RequestStats
    ) -> None:
        """Join and write an answer in a thread; the client gets it in any case."""
        if self._request_log is None:
            return
        attributes = answer.headers.get(CUSTOM_ATTRIBUTES, "")
        line = (stats.request_id, client, content, attributes, stats.started)
        try:
            await asyncio.to_thread(self._request_log.write, *line)
        except Exception as error:  # a full disk, or an answer of an unknown form
            log.error(
                "proxy: recording failed: id=%s: %r; the file lacks this answer, its client has it",
                stats.request_id, error,
            )  # fmt: skip


async def read_body(request: web.Request) -> dict[str, Any]:
    """Read a JSON object. Raises Refused."""
    try:
        value = json.loads(await request.read())
    except web.HTTPRequestEntityTooLarge:
        raise Refused(
            413, f"the body has more than {BODY_LIMIT} bytes, SageMaker's limit"
        ) from None
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body must be a JSON object")
    return value


def _request_id(request: web.Request) -> str:
    name = request.headers.get(REQUEST_ID, "")
    is_usable = 0 < len(name) <= LONGEST_ID and name.isascii() and name.isprintable()
    return name if is_usable else uuid.uuid4().hex


def _fields(request: web.Request, request_id: str) -> dict[str, str]:
    """Return the fields of InvokeEndpoint that come from the client's headers."""
    fields = {"InferenceId": request_id}
    for header, name in FORWARDED.items():
        if header in request.headers:
            value = request.headers[header]
            if not value.isascii() or len(value) > LONGEST_HEADER:
                raise Refused(400, f"{header}: must be ASCII, {LONGEST_HEADER} characters at most")
            fields[name] = value
    return fields


def _plan(client: ClientRequest, container: Container, target: Target) -> Plan:
    """Plan the invocation. Raises Refused for a body that has not the fields of its API."""
    try:
        return make_plan(client, container, target)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refused(400, f"the body is not of the form of {client.path}: {error}") from error


async def _as_it_is(answer: Answer) -> Answer:
    return answer


async def _whole(answer: Answer, plan: Plan) -> tuple[Whole, Answer]:
    try:
        return await read_whole(answer, plan), answer
    finally:
        answer.close()


async def _send_stream(
    request: web.Request,
    answer: Answer,
    plan: Plan,
    stats: RequestStats,
    body_parts: list[bytes] | None = None,
) -> web.StreamResponse:
    """Send the client's stream; an error after its beginning is one more event.

    Appends the parts to `body_parts`, if there is such a list.
    """
    headers = STREAM_HEADERS | answer.headers | {REQUEST_ID: stats.request_id}
    response = web.StreamResponse(headers=headers)
    try:
        await response.prepare(request)
        status = response.status
        try:
            async for part in stream_bytes(answer, plan, stats.api):
                stats.feed(part)
                if body_parts is not None:
                    body_parts.append(part)
                await response.write(part)
        except CallFailed as failure:
            status, stats.error = failure.status, failure.message
            await response.write(error_event(stats.api, failure.status, failure.message))
        stats.status = status  # until here the client may have left
        with contextlib.suppress(ConnectionResetError):  # some leave when they have the last event
            await response.write_eof()
    except ConnectionResetError:
        stats.error = "the client has disconnected"
    finally:
        answer.close()
    return response


def _whole_response(whole: Whole, answer: Answer, stats: RequestStats) -> web.Response:
    stats.feed(whole.body)
    stats.status = 200
    headers = answer.headers | {REQUEST_ID: stats.request_id, "Content-Type": whole.content_type}
    if whole.is_cut:
        headers[CUT] = "true"
    return web.Response(body=whole.body, headers=headers)


def _error_response(stats: RequestStats, error: CallFailed | Unsupported | Refused) -> web.Response:
    """Build the error of the client's API; a container's own of that form is passed on."""
    status = 400 if isinstance(error, Unsupported) else error.status
    stats.status, stats.error = status, error.message
    body = error.body if isinstance(error, CallFailed) else None
    if body is None or not has_form(stats.api, body):
        body = error_body(stats.api, status, error.message)
    headers = {REQUEST_ID: stats.request_id}
    if isinstance(error, CallFailed) and error.cause in (Cause.THROTTLED, Cause.CAPACITY):
        headers["Retry-After"] = "5"
    return web.json_response(body, status=status, headers=headers)
