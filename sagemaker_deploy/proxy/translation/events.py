"""Server-sent events, or lines of JSON, as objects; and objects as server-sent events."""

import json
from collections.abc import Iterator
from typing import Any, Protocol

Json = dict[str, Any]


class Translator(Protocol):
    """Translates the events of one stream."""

    def feed(self, event: Json) -> Iterator[Json]:
        """Yield the events that one event becomes."""
        ...

    def end(self) -> Iterator[Json]:
        """Yield the end, or, of a stream without its last event, the text held back."""
        ...

    def is_complete(self) -> bool:
        """Return whether the last event has come."""
        ...


class EventParser:
    """Cuts arbitrary parts of a stream into events, without comments, marks and `event:` lines.

    Containers of LMI write lines of JSON without `data:`.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, part: bytes) -> list[Json]:
        """Return the events that a part completes."""
        *lines, self._rest = (self._rest + part).split(b"\n")
        return [event for line in lines if (event := _event(line)) is not None]

    def end(self) -> list[Json]:
        """Return the last event, if it had no newline."""
        return self.feed(b"\n")


def _event(line: bytes) -> Json | None:
    text = line.removeprefix(b"data:").strip()
    if not text.startswith(b"{"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def encode(value: Any) -> bytes:
    """Encode a value as JSON in UTF-8; half of a surrogate pair, which has no UTF-8, is escaped."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def write(event: Json, *, typed: bool = False) -> bytes:
    """Encode an event; `typed` adds the `event:` line of Anthropic's and OpenAI's typed events."""
    data = b"data: " + encode(event)
    head = b"event: " + str(event.get("type", "message")).encode() + b"\n" if typed else b""
    return head + data + b"\n\n"


def is_error(event: Json) -> bool:
    """Return whether an event of any API reports an error."""
    return bool(event.get("error")) or event.get("type") == "error"
