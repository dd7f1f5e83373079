"""One endpoint behind the proxy: detects the kind of container, retries, keeps sessions."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from sagemaker_deploy.proxy.plans import TGI_MODEL, Container, Plan
from sagemaker_deploy.proxy.runtime.failures import CallFailed, Cause
from sagemaker_deploy.proxy.runtime.retries import Retries, RetrySettings
from sagemaker_deploy.proxy.runtime.runtime_client import Answer, Invocation, RuntimeClient
from sagemaker_deploy.proxy.runtime.sessions import Sessions
from sagemaker_deploy.proxy.targets import ContainerKind, Target
from sagemaker_deploy.proxy.translation.events import encode

T = TypeVar("T")
# Only containers that follow `route=` tokenize this; the others generate a token or refuse it.
ROUTE_PROBE = {"inputs": "a", "prompt": "a", "parameters": {"max_new_tokens": 1}}
CHAT_PROBE = {
    "model": TGI_MODEL,
    "messages": [{"role": "user", "content": "a"}],
    "max_tokens": 1,
}
# InvokeEndpoint opens a session for this id; the streaming call refuses it.
NEW_SESSION = "NEW_SESSION"


class Endpoint:
    """Calls of one target."""

    def __init__(self, target: Target, client: RuntimeClient, settings: RetrySettings) -> None:
        self.target = target
        self.retries = Retries(settings)
        self.sessions = Sessions(self._open_session) if target.sessions else None
        self._client = client
        self._detection: asyncio.Task[Container] | None = None

    async def container(self) -> Container:
        """Return the kind of container, detected once if not configured. Raises CallFailed."""
        if self._detection is None or _has_failed(self._detection):
            self._detection = asyncio.create_task(self._detect())
        return await asyncio.shield(self._detection)  # shared: a client that leaves must not end it

    async def call(
        self,
        plan: Plan,
        fields: Mapping[str, str],
        read: Callable[[Answer], Awaitable[T]],
        *,
        key: str = "",
        on_retry: Callable[[], None] = lambda: None,
    ) -> T:
        """Send a planned invocation and read its answer, with retries. Raises CallFailed.

        `fields` are header fields by botocore's names; `key` identifies the conversation.
        """

        async def attempt() -> T:
            answer = await self._open(plan, await self._with_session(fields, key))
            self.retries.add_open()
            try:
                return await read(answer)
            except BaseException:  # a client that leaves cancels the call, which has to end, too
                answer.close()
                raise

        try:
            return await self.retries.run(attempt, on_retry)
        except CallFailed as failure:
            if not (self.sessions and key and _is_lost_session(failure)):
                raise
            self.sessions.forget(key)
            return await self.retries.run(attempt, on_retry)

    async def _open(self, plan: Plan, fields: Mapping[str, str]) -> Answer:
        body = encode(plan.body)
        fields = {**fields, **self.target.fields()}
        if plan.route:
            attributes = [f"route={plan.route}", fields.get("CustomAttributes", "")]
            fields["CustomAttributes"] = ",".join(filter(None, attributes))
        # The streaming call has no TargetModel and opens no session; without it the container's
        # stream comes as a whole.
        can_stream = self.target.target_model is None and fields.get("SessionId") != NEW_SESSION
        invocation = Invocation(self.target.endpoint, body, fields)
        return await self._client.open(invocation, streamed=plan.streams and can_stream)

    async def _with_session(self, fields: Mapping[str, str], key: str) -> Mapping[str, str]:
        if not self.sessions or not key or "SessionId" in fields:
            return fields
        session_id = await self.sessions.id_of(key)
        return {**fields, "SessionId": session_id} if session_id else fields

    async def _detect(self) -> Container:
        kind = self.target.container
        if kind is ContainerKind.TGI and self.target.chat_template is not None:
            return Container(kind, has_chat=False)
        if kind is not ContainerKind.AUTO:
            return Container(kind)
        answer = await self._probe(ROUTE_PROBE, "/tokenize")
        known = kind_of(answer)
        if known is not ContainerKind.TGI:
            return Container(known)
        chat = await self._probe(CHAT_PROBE, None)
        return Container(known, has_chat=isinstance(chat, dict) and "choices" in chat)

    async def _probe(self, body: dict[str, Any], route: str | None) -> Any:
        """Return the answer to a probe, or the container's error: its body or words.

        Raises CallFailed if no container answered.
        """
        try:
            content = await self.call(Plan(body, False, route), {}, _content)
        except CallFailed as failure:
            words = _container_error(failure)
            if words is None:
                raise
            return words
        try:
            return json.loads(content)
        except ValueError:
            return None

    async def _open_session(self) -> str:
        """Open a sticky session; returns the header with its id and when it ends."""
        plan = Plan({"requestType": NEW_SESSION}, False)
        answer = await self._open(plan, {"SessionId": NEW_SESSION})
        await _content(answer)
        return str(answer.headers.get("X-Amzn-SageMaker-New-Session-Id", ""))


async def _content(answer: Answer) -> bytes:
    try:
        return await answer.read()
    finally:
        answer.close()


def _has_failed(task: asyncio.Task[Container]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _is_lost_session(failure: CallFailed) -> bool:
    return failure.status in (400, 404, 424) and "session" in failure.message.lower()


def _container_error(failure: CallFailed) -> Any:
    """Return the error with which a container refused a probe, or None if it did not."""
    if failure.cause is not Cause.REFUSED:
        return None
    if failure.body is not None:
        return failure.body
    is_text = failure.is_from_container and failure.status < 500
    return failure.message if is_text else None


def kind_of(answer: Any) -> ContainerKind:
    """Return the kind of container that gives such an answer to the first probe."""
    if isinstance(answer, dict) and "tokens" in answer:
        return ContainerKind.VLLM
    if isinstance(answer, dict) and "generated_text" in answer:
        return ContainerKind.LMI
    if isinstance(answer, list) and answer and "generated_text" in answer[0]:
        return ContainerKind.TGI
    # TGI before 3.0 refuses in plain text.
    error = answer.get("error") if isinstance(answer, dict) else answer
    if "missing field `messages`" in str(error):
        return ContainerKind.TGI
    return ContainerKind.OURS
