"""Reads an endpoint's answer as the client wants it: in events, joined, or as it came."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sagemaker_deploy.proxy.plans import TYPED, WITH_DONE, Api, Plan
from sagemaker_deploy.proxy.runtime.failures import CallFailed, Cause
from sagemaker_deploy.proxy.runtime.runtime_client import JSON_TYPE, Answer
from sagemaker_deploy.proxy.translation.events import Json, encode, write
from sagemaker_deploy.proxy.translation.joins import Join
from sagemaker_deploy.proxy.translation.pipeline import Pipeline

DONE = b"data: [DONE]\n\n"
EARLY_END = "the endpoint's stream ended early"
USAGE_BYTES = 4096
_PROMPT = re.compile(rb'"(?:prompt_tokens|input_tokens|input_length)": ?(\d+)')
_COMPLETION = re.compile(rb'"(?:completion_tokens|output_tokens|generated_tokens)": ?(\d+)')


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole answer; `is_cut` if SageMaker ended its stream after 8 minutes."""

    body: bytes
    content_type: str = JSON_TYPE
    is_cut: bool = False


class Usage:
    """The token counts in the beginning and the end of an answer, without parsing all of it."""

    def __init__(self) -> None:
        self._head = b""
        self._tail = b""

    def feed(self, part: bytes) -> None:
        """Note a part."""
        if len(self._head) < USAGE_BYTES:
            self._head += part[:USAGE_BYTES]
        self._tail = (self._tail + part)[-USAGE_BYTES:]

    def counts(self) -> tuple[int, int]:
        """Return the tokens of prompt and completion; 0 if the answer does not say."""
        text = self._head + self._tail
        return _last(_PROMPT, text), _last(_COMPLETION, text)


def _last(pattern: "re.Pattern[bytes]", text: bytes) -> int:
    return int((pattern.findall(text) or [b"0"])[-1])


async def read_whole(answer: Answer, plan: Plan) -> Whole:
    """Return the whole answer, joined if it is a stream. Raises CallFailed."""
    if plan.join is None or _is_json(answer.content_type):
        return _finished(await answer.read(), answer.content_type, plan)
    join, is_cut = plan.join(), False
    try:
        await _add_all(answer, Pipeline(plan.translators), join)
    except CallFailed as failure:
        if failure.cause is not Cause.TIMED_OUT:
            raise
        is_cut = True
    if not is_cut and not join.is_complete():
        raise CallFailed(Cause.UNAVAILABLE, 502, EARLY_END)
    with _of_known_form():
        return Whole(encode(plan.finish(join.result())), is_cut=is_cut)


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip() == JSON_TYPE


async def _add_all(answer: Answer, pipeline: Pipeline, join: Join) -> None:
    async for event in _events(answer, pipeline):
        with _of_known_form():
            join.add(event)


async def _events(answer: Answer, pipeline: Pipeline) -> AsyncIterator[Json]:
    """Yield translated events, also those held back when the stream fails. Raises CallFailed."""
    broken: CallFailed | None = None
    try:
        async for part in answer.parts():
            with _of_known_form():
                events = pipeline.feed(part)
            for event in events:
                yield event
    except CallFailed as failure:
        broken = failure
    with _of_known_form():
        events = pipeline.end()
    for event in events:
        yield event
    if broken:
        raise broken


@contextmanager
def _of_known_form() -> Iterator[None]:
    """Report events that have not the fields of their API as a fault of the container."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        message = f"the container's stream has an event of an unknown form: {error!r}"
        raise CallFailed(Cause.REFUSED, 502, message) from error


def _finished(content: bytes, content_type: str, plan: Plan) -> Whole:
    """Return an answer that was no stream."""
    if plan.translators:
        raise CallFailed(Cause.REFUSED, 502, "the container answered without a stream")
    if plan.streams:  # it ignores `stream`, and its answer is whole
        return Whole(content, content_type)
    try:
        value: Any = json.loads(content)
    except ValueError:
        return Whole(content, content_type)
    finished = plan.finish(value)
    return Whole(content if finished is value else encode(finished), content_type)


async def stream_bytes(answer: Answer, plan: Plan, api: Api) -> AsyncIterator[bytes]:
    """Yield the client's stream. Raises CallFailed."""
    if not plan.translators:
        async for part in answer.parts():
            yield part
        return
    pipeline, typed = Pipeline(plan.translators), api in TYPED
    async for event in _events(answer, pipeline):
        yield write(event, typed=typed)
    if not pipeline.is_complete():
        raise CallFailed(Cause.UNAVAILABLE, 502, EARLY_END)
    if api in WITH_DONE:
        yield DONE
