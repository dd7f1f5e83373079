"""A response as OpenAI's object: while it runs, and once it has ended."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from container.frontend.apis.openai.responses.output_items import Event, Item, OutputItems
from container.frontend.apis.openai.responses.schema import ResponseRequest
from container.frontend.apis.openai.responses.store import StoredResponse
from container.frontend.apis.openai.token_details import scored
from container.frontend.chat.conversations import Reply
from container.frontend.generation.completion import TextEvent
from container.frontend.generation.running_request import RunningRequest
from container.frontend.web.responses import deadline_mark, written
from container.messages.engine import FinishReason
from container.text.delta import Delta, DeltaKind


@dataclass(slots=True)
class ModelResponse:
    """A started response: the running reply, and its output so far.

    `earlier` are the items of the conversation before this request.
    """

    reply: Reply
    response_request: ResponseRequest
    model: str
    id: str
    created_at: int
    output: OutputItems
    earlier: list[Item]
    is_stored: bool
    numbers: Iterator[int] = field(default_factory=count)
    unsent: list[Any] = field(default_factory=list)  # scored tokens whose text is still to come

    @property
    def running(self) -> RunningRequest:
        """The request in the engine."""
        return self.reply.running

    def body(self, status: str) -> dict[str, Any]:
        """Return the response object with its output so far."""
        response_request, is_incomplete = self.response_request, status == "incomplete"
        has_ended = status in ("completed", "incomplete")
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": self._incomplete_details() if is_incomplete else None,
            "instructions": response_request.instructions,
            "max_output_tokens": response_request.max_output_tokens,
            "model": self.model,
            "output": self.output.items if has_ended else [],
            "parallel_tool_calls": response_request.parallel_tool_calls is not False,
            "previous_response_id": response_request.previous_response_id,
            "reasoning": response_request.reasoning.model_dump()
            if response_request.reasoning
            else {"effort": None},
            "store": self.is_stored,
            "temperature": 1.0
            if response_request.temperature is None
            else response_request.temperature,
            "text": {
                "format": (response_request.text and response_request.text.format)
                or {"type": "text"}
            },
            "tool_choice": response_request.tool_choice or "auto",
            "tools": response_request.tools or [],
            "top_logprobs": response_request.top_logprobs or 0,
            "top_p": 1.0 if response_request.top_p is None else response_request.top_p,
            "truncation": "disabled",
            "usage": self._usage() if has_ended else None,
            "user": response_request.user,
            "metadata": response_request.metadata or {},
        }

    def stored(self, status: str) -> StoredResponse:
        """Return the ended response in the form in which it is stored."""
        items = [*self.earlier, *self.response_request.items, *self.output.items]
        return StoredResponse(self.body(status), items)

    def number(self, event: Event) -> Event:
        """Add the sequence number of an event."""
        return event | {"sequence_number": next(self.numbers)}

    def _incomplete_details(self) -> dict[str, Any]:
        reason = self.running.completions[0].finish_reason
        return {"reason": "max_output_tokens"} | deadline_mark(reason)

    def _usage(self) -> dict[str, Any]:
        prompt, new = self.running.prompt_tokens, self.running.completion_tokens
        cached = self.running.prompt.cached_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": new,
            "output_tokens_details": {"reasoning_tokens": self.reply.builders[0].reasoning_tokens},
            "total_tokens": prompt + new,
        }


def take(response: ModelResponse, event: TextEvent) -> Iterator[Event]:
    """Turn a token into events of the output; the last one closes it."""
    deltas = response.reply.take(event)
    logprobs = _take_logprobs(response, event, deltas)
    for delta in deltas:
        is_text = delta.kind is DeltaKind.CONTENT
        yield from response.output.take(delta, logprobs if is_text else [])
        logprobs = [] if is_text else logprobs
    if event.finish_reason is not None:
        yield from response.output.close(status_of(event.finish_reason))


def _take_logprobs(response: ModelResponse, event: TextEvent, deltas: list[Delta]) -> list[Any]:
    """Return the scored tokens of the text in some deltas; marks and thoughts have none."""
    if response.response_request.num_logprobs is None:
        return []
    if not event.is_cut:
        response.unsent.append(written(scored(event, as_id=False)))
    if not deltas:
        return []
    logprobs, response.unsent = response.unsent, []
    return logprobs if any(delta.kind is DeltaKind.CONTENT for delta in deltas) else []


def status_of(reason: FinishReason | None) -> str:
    """Return OpenAI's status of a response that ended for a reason."""
    return "completed" if reason in (FinishReason.END_TOKEN, FinishReason.STOP) else "incomplete"
