"""Chats as OpenAI's answers and chunks.

A stream's first delta has the role, as OpenAI's clients read it: they would join roles of several
deltas to one word. It opens with `content: null` for a call and with "" for text; the last delta of
a text has `content: ""`, as TGI and vLLM send it, so that clients may print it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from container import __version__
from container.frontend.apis.openai.chat_schema import ChatRequest
from container.frontend.apis.openai.token_details import (
    prompt_logprobs,
    scored,
    token_ids,
)
from container.frontend.chat.conversations import MessageBuilder, Reply
from container.frontend.generation.completion import TextEvent
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.running_request import RunningRequest
from container.frontend.web.responses import deadline_mark, written
from container.messages.engine import FinishReason
from container.text.message_parser import Delta, DeltaKind

FINISH_REASONS = {
    FinishReason.END_TOKEN: "stop",
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORTED: "length",
    FinishReason.DEADLINE: "length",
}
FINGERPRINT = f"{__version__}-native"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Chat:
    """A started chat request; `begun` has the sequences whose role has been streamed."""

    reply: Reply
    chat_request: ChatRequest
    model: str
    id: str
    created: int
    forces_call: bool
    begun: set[int] = field(default_factory=set)

    @property
    def running(self) -> RunningRequest:
        """The request in the engine."""
        return self.reply.running

    def envelope(self, kind: str) -> dict[str, Any]:
        """The fields that every answer and every chunk has."""
        return {
            "object": kind,
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }

    def finish_reason(self, seq_index: int, reason: FinishReason | None) -> str | None:
        """OpenAI's word, once a sequence has ended."""
        if self.reply.calls_tools(seq_index, reason):
            return "tool_calls"
        return FINISH_REASONS[reason] if reason is not None else None


def served_name(requested: str | None, served: str) -> str:
    """Return the model's name for an answer: the one in the request.

    Clients of TGI write "tgi" for the served model; SageMaker's front door writes "".
    """
    return requested if requested and requested != "tgi" else served


def usage(*replies: Reply) -> dict[str, Any]:
    """Count the tokens; `cached_tokens` are those of the prompts that were already computed."""
    prompt = sum(reply.running.prompt_tokens for reply in replies)
    new = sum(reply.running.completion_tokens for reply in replies)
    cached = sum(reply.running.prompt.cached_tokens for reply in replies)
    thought = sum(builder.reasoning_tokens for reply in replies for builder in reply.builders)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def choices_of(chat: Chat) -> list[dict[str, Any]]:
    """Render the choices of a whole answer."""
    choices = []
    for completion in chat.running.completions:
        builder = chat.reply.take_whole(completion)
        choice: dict[str, Any] = {
            "index": completion.seq_index,
            "message": _message(builder, with_reasoning=chat.chat_request.shows_reasoning),
            "logprobs": _logprobs(chat, completion.events),
            "finish_reason": chat.finish_reason(completion.seq_index, completion.finish_reason),
            **deadline_mark(completion.finish_reason),
        }
        if chat.chat_request.return_token_ids:
            choice["token_ids"] = token_ids(completion.events)
        choices.append(choice)
    return choices


def answer(chat: Chat) -> dict[str, Any]:
    """Render a whole answer."""
    choices = choices_of(chat)
    body: dict[str, Any] = {"choices": choices, "usage": usage(chat.reply)}
    if chat.chat_request.return_token_ids:
        body["prompt_token_ids"] = chat.running.prompt_ids
    if chat.chat_request.prompt_logprobs is not None:
        body["prompt_logprobs"] = prompt_logprobs(chat.running)
    return chat.envelope("chat.completion") | body


def chunks(chat: Chat, event: TextEvent) -> Iterator[dict[str, Any]]:
    """Render an event of a stream as chunks."""
    deltas = [
        _delta(chat, event.seq_index, delta)
        for delta in chat.reply.take(event)
        if delta.kind is not DeltaKind.REASONING or chat.chat_request.shows_reasoning
    ]
    is_first = event.seq_index not in chat.begun
    has_token = chat.chat_request.logprobs or chat.chat_request.return_token_ids
    if not deltas and (is_first or event.finish_reason is not None or has_token):
        # Clients print the content of each delta; after a call there is none.
        has_calls = bool(chat.reply.builders[event.seq_index].calls)
        deltas = [{} if has_calls else {"content": ""}]
    if is_first and deltas:
        chat.begun.add(event.seq_index)
        is_call = chat.forces_call or "tool_calls" in deltas[0]
        opening = {"role": "assistant", "content": None if is_call else ""}
        if chat.forces_call and not deltas[0].get("content"):
            deltas[0].pop("content", None)
        deltas[0] = opening | deltas[0]
    for index, delta in enumerate(deltas):
        is_end = index == len(deltas) - 1
        yield _chunk(chat, event, delta, is_first=is_first and index == 0, is_end=is_end)
    if chat.running.is_finished and chat.chat_request.includes_usage:
        last_chunk = {"choices": [], "usage": usage(chat.reply)}
        yield chat.envelope("chat.completion.chunk") | last_chunk


def _message(builder: MessageBuilder, *, with_reasoning: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": builder.content}
    if builder.reasoning and with_reasoning:
        message["reasoning_content"] = builder.reasoning
    if builder.calls:
        message["content"] = builder.content or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in builder.calls
        ]
    return message


def _delta(chat: Chat, seq_index: int, delta: Delta) -> dict[str, Any]:
    """Render a delta: a call has its id and its name once, then pieces of its arguments."""
    if delta.kind is DeltaKind.CONTENT:
        return {"content": delta.text}
    if delta.kind is DeltaKind.REASONING:
        return {"reasoning_content": delta.text}
    call: dict[str, Any] = {"index": delta.call_index}
    if delta.kind is DeltaKind.CALL:
        tool_call = chat.reply.builders[seq_index].calls[delta.call_index]
        function = {"name": tool_call.name, "arguments": ""}
        call |= {"id": tool_call.id, "type": "function", "function": function}
    else:
        call["function"] = {"arguments": delta.text}
    return {"tool_calls": [call]}


def _chunk(
    chat: Chat, event: TextEvent, delta: dict[str, Any], *, is_first: bool, is_end: bool
) -> dict[str, Any]:
    """Render a chunk; the last delta of a token has its log-probability and finish reason."""
    reason = chat.finish_reason(event.seq_index, event.finish_reason) if is_end else None
    choice: dict[str, Any] = {
        "index": event.seq_index,
        "delta": delta,
        "logprobs": _logprobs(chat, [event]) if is_end and not event.is_cut else None,
        "finish_reason": reason,
        **deadline_mark(event.finish_reason if is_end else None),
    }
    chunk = chat.envelope("chat.completion.chunk") | {"choices": [choice]}
    if chat.chat_request.return_token_ids:
        choice["token_ids"] = [event.token.token_id] if is_end and not event.is_cut else []
        if is_first:
            chunk["prompt_token_ids"] = chat.running.prompt_ids
    if chat.chat_request.includes_running_usage:
        return chunk | {"usage": usage(chat.reply)}
    return chunk | {"usage": None} if chat.chat_request.includes_usage else chunk


def _logprobs(chat: Chat, events: list[TextEvent]) -> dict[str, Any] | None:
    chat_request = chat.chat_request
    if not chat_request.logprobs:
        return None
    as_id = bool(chat_request.return_tokens_as_token_ids)
    return {"content": [written(scored(event, as_id=as_id)) for event in in_pieces(events)]}
