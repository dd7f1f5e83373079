"""OpenAI's chat chunks as Anthropic's typed events."""

import uuid
from collections.abc import Iterator

from sagemaker_deploy.proxy.translation.events import Json

REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


class MessagesFromChat:
    """Translates one stream; blocks follow each other, one open at a time."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._has_begun = False
        self._index = -1
        self._open = ""  # the type of the open block, with the index of its call
        self._reason: str | None = None
        self._usage: Json = {"input_tokens": 0, "output_tokens": 0}

    def feed(self, event: Json) -> Iterator[Json]:
        """Yield the events of a chunk."""
        if not self._has_begun:
            yield self._start(event)
        if usage := event.get("usage"):
            self._usage = {
                "input_tokens": usage.get("prompt_tokens") or 0,
                "output_tokens": usage.get("completion_tokens") or 0,
            }
        for choice in event.get("choices") or []:
            yield from self._take(choice.get("delta") or {})
            reason = choice.get("finish_reason")
            self._reason = REASONS.get(reason, "end_turn") if reason else self._reason

    def end(self) -> Iterator[Json]:
        """Yield the end of the last block and of the message."""
        yield from self._close()
        if self._reason is not None:
            delta = {"stop_reason": self._reason, "stop_sequence": None}
            yield {"type": "message_delta", "delta": delta, "usage": self._usage}
            yield {"type": "message_stop"}

    def is_complete(self) -> bool:
        """Return whether the finish reason has come."""
        return self._reason is not None

    def _start(self, event: Json) -> Json:
        self._has_begun = True
        message: Json = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": self._model or event.get("model", ""),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": dict(self._usage),
        }
        return {"type": "message_start", "message": message}

    def _take(self, delta: Json) -> Iterator[Json]:
        if thoughts := delta.get("reasoning_content") or delta.get("reasoning"):
            block: Json = {"type": "thinking", "thinking": "", "signature": ""}
            yield from self._delta("thinking", block, "thinking_delta", "thinking", thoughts)
        if text := delta.get("content"):
            block = {"type": "text", "text": ""}
            yield from self._delta("text", block, "text_delta", "text", text)
        for call in delta.get("tool_calls") or []:
            yield from self._call(call)

    def _call(self, call: Json) -> Iterator[Json]:
        function = call.get("function") or {}
        block: Json = {
            "type": "tool_use",
            "id": call.get("id") or f"toolu_{uuid.uuid4().hex}",
            "name": function.get("name") or "",
            "input": {},
        }
        key, arguments = f"tool_use {call.get('index', 0)}", function.get("arguments") or ""
        yield from self._delta(key, block, "input_json_delta", "partial_json", arguments)

    def _delta(self, key: str, block: Json, kind: str, name: str, text: str) -> Iterator[Json]:
        if key != self._open:
            yield from self._close()
            self._open = key
            self._index += 1
            yield {"type": "content_block_start", "index": self._index, "content_block": block}
        if text:
            delta = {"type": kind, name: text}
            yield {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> Iterator[Json]:
        if self._open:
            self._open = ""
            yield {"type": "content_block_stop", "index": self._index}
