"""The content of an answer, as Anthropic's blocks and as the events of a stream.

    thinking block | text block | tool_use block ...
A delta opens a block when the kind of text changes, and closes the one before. A whole answer uses
the blocks and drops the events.
"""

import json
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from container.frontend.chat.conversations import MessageBuilder
from container.text.message_parser import Delta, DeltaKind

Event = dict[str, Any]
Block = dict[str, Any]
# Anthropic's clients send it back with the thoughts; nothing is signed here.
SIGNATURE = "unsigned"
DELTAS = {
    DeltaKind.CONTENT: ("text_delta", "text"),
    DeltaKind.REASONING: ("thinking_delta", "thinking"),
    DeltaKind.CALL: ("input_json_delta", "partial_json"),
}


class ContentBlocks:
    """Owns the blocks of one answer; `builder` has the ids of its calls.

    `shows_thinking` false leaves the thoughts out of their blocks.
    """

    def __init__(self, builder: MessageBuilder, *, shows_thinking: bool = True) -> None:
        self.blocks: list[Block] = []
        self._builder = builder
        self._shows_thinking = shows_thinking
        self._kind: DeltaKind | None = None
        self._arguments = ""

    def take(self, delta: Delta) -> Iterator[Event]:
        """Add a delta and yield its events."""
        kind = DeltaKind.CALL if delta.kind is DeltaKind.ARGUMENTS else delta.kind
        if kind is not self._kind or delta.kind is DeltaKind.CALL:
            yield from self.close()
            yield self._open(kind, delta)
        if delta.kind is DeltaKind.CALL:
            return
        if kind is DeltaKind.REASONING and not self._shows_thinking:
            return
        type_, key = DELTAS[kind]
        if kind is DeltaKind.CALL:
            self._arguments += delta.text
        else:
            self.blocks[-1][key] += delta.text
        yield self._event("content_block_delta", delta={"type": type_, key: delta.text})

    def close(self) -> Iterator[Event]:
        """End the open block, if there is one, and yield its events."""
        if self._kind is None:
            return
        if self._kind is DeltaKind.CALL:
            self.blocks[-1]["input"] = arguments_of(self._arguments)
        elif self._kind is DeltaKind.REASONING:
            self.blocks[-1]["signature"] = SIGNATURE
            signature = {"type": "signature_delta", "signature": SIGNATURE}
            yield self._event("content_block_delta", delta=signature)
        self._kind = None
        yield self._event("content_block_stop")

    def _open(self, kind: DeltaKind, delta: Delta) -> Event:
        self._kind, self._arguments = kind, ""
        self.blocks.append(self._new_block(kind, delta))
        return self._event("content_block_start", content_block=dict(self.blocks[-1]))

    def _new_block(self, kind: DeltaKind, delta: Delta) -> Block:
        if kind is DeltaKind.CALL:
            call = self._builder.calls[delta.call_index]
            return {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        if kind is DeltaKind.REASONING:
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "text", "text": ""}

    def _event(self, name: str, **fields: Any) -> Event:
        return {"type": name, "index": len(self.blocks) - 1, **fields}


def arguments_of(text: str) -> dict[str, Any]:
    """Parse the arguments of a call as an object; those of a cut call as far as they came."""
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = from_json(text, allow_partial="trailing-strings")
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}
