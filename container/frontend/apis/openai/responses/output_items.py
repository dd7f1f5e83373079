"""The output of a response, as OpenAI's items and as the events of a stream.

    reasoning item | message item | function_call item ...
A delta opens an item when the kind of text changes, and closes the one before. A whole answer uses
the items and drops the events. Wire format: OpenAI's "Responses" and its streaming events.
"""

import secrets
from collections.abc import Iterator
from typing import Any

from container.frontend.chat.conversations import MessageBuilder
from container.text.message_parser import Delta, DeltaKind

Event = dict[str, Any]
Item = dict[str, Any]


class OutputItems:
    """Owns the items of one response; `builder` has the ids of its calls."""

    def __init__(self, builder: MessageBuilder) -> None:
        self.items: list[Item] = []
        self._builder = builder
        self._kind: DeltaKind | None = None

    def take(self, delta: Delta, logprobs: list[Any]) -> Iterator[Event]:
        """Add a delta, with the scored tokens of a text, and yield its events."""
        kind = DeltaKind.CALL if delta.kind is DeltaKind.ARGUMENTS else delta.kind
        if kind is not self._kind or delta.kind is DeltaKind.CALL:
            yield from self.close("completed")
            yield from self._open(kind, delta)
        if delta.kind is DeltaKind.CALL:
            return
        item, position = self.items[-1], self._position()
        if kind is DeltaKind.CALL:
            item["arguments"] += delta.text
            yield {
                "type": "response.function_call_arguments.delta",
                **position,
                "delta": delta.text,
            }
            return
        item["content"][0]["text"] += delta.text
        event = {"type": f"response.{_word(kind)}.delta", **position, "content_index": 0}
        if kind is DeltaKind.CONTENT:
            item["content"][0]["logprobs"] += logprobs
            event["logprobs"] = logprobs
        yield event | {"delta": delta.text}

    def close(self, status: str) -> Iterator[Event]:
        """End the open item, if there is one, and yield its events.

        `status` is completed or incomplete.
        """
        if self._kind is None:
            return
        item, position, kind = self.items[-1], self._position(), self._kind
        self._kind = None
        item["status"] = status
        if kind is DeltaKind.CALL:
            yield {
                "type": "response.function_call_arguments.done",
                **position,
                "name": item["name"],
                "arguments": item["arguments"],
            }
        else:
            part = item["content"][0]
            part_position = position | {"content_index": 0}
            done = {"type": f"response.{_word(kind)}.done", **part_position, "text": part["text"]}
            yield done | ({"logprobs": part["logprobs"]} if kind is DeltaKind.CONTENT else {})
            yield {"type": "response.content_part.done", **part_position, "part": dict(part)}
        yield {
            "type": "response.output_item.done",
            "output_index": position["output_index"],
            "item": _copy(item),
        }

    def _open(self, kind: DeltaKind, delta: Delta) -> Iterator[Event]:
        self._kind = kind
        item = self._new_item(kind, delta)
        item_copy = _copy(item)
        if kind is not DeltaKind.CALL:
            item_copy["content"] = []
        self.items.append(item)
        position = self._position()
        yield {
            "type": "response.output_item.added",
            "output_index": position["output_index"],
            "item": item_copy,
        }
        if kind is not DeltaKind.CALL:
            part = dict(item["content"][0])
            yield {
                "type": "response.content_part.added",
                **position,
                "content_index": 0,
                "part": part,
            }

    def _new_item(self, kind: DeltaKind, delta: Delta) -> Item:
        number = secrets.token_hex(12)
        if kind is DeltaKind.CALL:
            call = self._builder.calls[delta.call_index]
            return {
                "id": f"fc_{number}",
                "type": "function_call",
                "call_id": call.id,
                "name": call.name,
                "arguments": "",
                "status": "in_progress",
            }
        if kind is DeltaKind.REASONING:
            return {
                "id": f"rs_{number}",
                "type": "reasoning",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": ""}],
                "status": "in_progress",
            }
        return {
            "id": f"msg_{number}",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}],
            "status": "in_progress",
        }

    def _position(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}


def _word(kind: DeltaKind) -> str:
    return "reasoning_text" if kind is DeltaKind.REASONING else "output_text"


def _copy(item: Item) -> Item:
    """Copy an item, which still grows."""
    copied = dict(item)
    if "content" in item:
        copied["content"] = [dict(part) for part in item["content"]]
    return copied
