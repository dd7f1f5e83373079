"""The shape of a conversation, and a conversation of that shape made of sentinels.

A template treats messages by their roles and forms, not by their texts. So what it does to a
conversation shows on sentinels: short texts in the place of every content, name and argument, which
must all be in what it renders.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from container.text.history.call_remedies import SHORT_ID
from container.text.history.content import Message, is_empty, parts_of

# What follows a call is the same after ten calls as after two.
MAX_REPEATS = 2
MAX_PERIOD = 8
MAX_CALLS = 4
# A conversation may have tens of thousands of messages; the time to find its shape is bounded.
MAX_MESSAGES = 400
MAX_SENTINELS = 64

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "zqtool",
        "description": "zqdescription",
        "parameters": {
            "type": "object",
            "properties": {"zqkey": {"type": "string", "description": "zqkey"}},
            "required": ["zqkey"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class MessageShape:
    """The properties of a message that a template can see, besides its texts.

    `parts` has the types of its contents, none for an empty message; `calls` whether the arguments
    of each call are an object of texts or of other values, empty, or text. `is_answer`: a result
    whose call is known.
    """

    role: str
    parts: tuple[str, ...]
    calls: tuple[str, ...] = ()
    has_reasoning: bool = False
    is_answer: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """The properties of a conversation that a template can see, besides its texts."""

    messages: tuple[MessageShape, ...]
    has_tools: bool
    has_short_ids: bool


@dataclass(frozen=True, slots=True)
class Sentinel:
    """Texts of the message at `index`: a content, a name, or a key and its value.

    `is_name`: the name of a call that has arguments. A template may do without it, as it may take
    the whole call for arguments.
    """

    index: int
    texts: tuple[str, ...]
    is_name: bool = False


@dataclass(slots=True)
class Sentinels:
    """A conversation of sentinels."""

    messages: list[Message] = field(default_factory=list)
    texts: list[Sentinel] = field(default_factory=list)

    def lost(self, rendered: str) -> list[Sentinel]:
        """Return the sentinels that a rendering lacks."""
        return [sentinel for sentinel in self.texts if not _is_rendered(sentinel.texts, rendered)]


def shape_of(messages: list[Message], *, has_tools: bool) -> Shape:
    """Return the shape of a conversation that is linked; repeated rounds count twice at most."""
    ids = [call["id"] for message in messages for call in message.get("tool_calls") or []]
    known = set(ids)
    shapes = [_message_shape(message, known) for message in messages]
    # An open answer may be empty, but a template gets it with text.
    if shapes[-1].role == "assistant" and not shapes[-1].calls and not shapes[-1].parts:
        shapes[-1] = MessageShape("assistant", ("text",))
    return Shape(
        tuple(collapsed(shapes)),
        has_tools,
        has_short_ids=bool(ids) and all(map(SHORT_ID.fullmatch, ids)),
    )


def sentinels_of(shape: Shape) -> Sentinels:
    """Make a conversation of this shape."""
    sentinels = Sentinels()
    unanswered: list[str] = []
    names: dict[str, str] = {}
    for index, kind in enumerate(shape.messages):
        texts = sentinels.texts
        message: Message = {"role": kind.role, "content": _content(kind, index, texts)}
        if kind.has_reasoning:
            message["reasoning_content"] = "zqthought"
        if kind.calls:
            calls: list[dict[str, Any]] = []
            message["tool_calls"] = calls
            for number, arguments in enumerate(kind.calls):
                word = f"zq{index}c{number}"
                call_id = f"{word}wxyzvu"[:9] if shape.has_short_ids else f"call_{word}{'0' * 20}"
                calls.append(_call(call_id, word, arguments))
                texts += _call_sentinels(index, word, arguments)
                names[call_id] = f"{word}n"
                unanswered.append(call_id)
        if kind.role == "tool":
            message["tool_call_id"] = call_id = unanswered.pop(0) if unanswered else "call_zq"
            if kind.is_answer and call_id in names:
                message["name"] = names[call_id]
        sentinels.messages.append(message)
    return sentinels


def collapsed(shapes: list[MessageShape]) -> list[MessageShape]:
    """Shorten each repetition of the same messages to `MAX_REPEATS`, of results to `MAX_CALLS`.

    Of what is still long, keep the ends, and from between them each pair of neighbours once.
    """
    shapes = _thinned(shapes, MAX_MESSAGES)
    for period in range(1, MAX_PERIOD + 1):
        shortened: list[MessageShape] = []
        for shape in shapes:
            shortened.append(shape)
            # As many results as calls.
            is_result = period == 1 and shape.role == "tool"
            size = MAX_CALLS if is_result else period * MAX_REPEATS
            if (
                len(shortened) >= size + period
                and shortened[-size - period : -period] == shortened[-size:]
            ):
                del shortened[-period:]
        shapes = shortened
    return _thinned(shapes, MAX_SENTINELS)


def _thinned(shapes: list[MessageShape], size: int) -> list[MessageShape]:
    if len(shapes) <= size:
        return shapes
    end = size // 4
    between = list(dict.fromkeys(pairwise(shapes[end:-end])))[:end]
    return [*shapes[:end], *(shape for pair in between for shape in pair), *shapes[-end:]]


def _message_shape(message: Message, known_ids: set[str]) -> MessageShape:
    parts = [] if is_empty(message | {"tool_calls": []}) else parts_of(message["content"])
    return MessageShape(
        message["role"],
        tuple(part["type"] for part in parts),
        tuple(
            _arguments_kind(call["function"]["arguments"])
            for call in message.get("tool_calls", [])[:MAX_CALLS]
        ),
        has_reasoning=bool(message.get("reasoning_content")),
        is_answer=message.get("tool_call_id") in known_ids,
    )


def _arguments_kind(arguments: object) -> str:
    if isinstance(arguments, dict):
        if not arguments:
            return "empty"
        return "object" if all(isinstance(value, str) for value in arguments.values()) else "values"
    return "text"


def _content(kind: MessageShape, index: int, texts: list[Sentinel]) -> Any:
    if not kind.parts:
        return ""
    parts: list[dict[str, str]] = []
    for number, part in enumerate(kind.parts):
        if part != "text":
            parts.append({"type": part})
            continue
        text = f"zq{index}p{number}t"
        texts.append(Sentinel(index, (text,)))
        parts.append({"type": "text", "text": text})
    return parts[0]["text"] if kind.parts == ("text",) else parts


def _call(call_id: str, word: str, kind: str) -> dict[str, Any]:
    arguments: Any = {}
    if kind != "empty":
        key, value = f"{word}k", f"{word}v"
        objects = {"object": {key: value}, "values": {key: [value]}}
        arguments = objects.get(kind, f'{{"{key}": ["{value}')
    function = {"name": f"{word}n", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _call_sentinels(index: int, word: str, kind: str) -> list[Sentinel]:
    name = Sentinel(index, (f"{word}n",), is_name=kind != "empty")
    return [name] if kind == "empty" else [name, Sentinel(index, (f"{word}k", f"{word}v"))]


def _is_rendered(group: tuple[str, ...], rendered: str) -> bool:
    """Whether the texts of a sentinel are there; a key and its value as no repr and unescaped."""
    if not all(text in rendered for text in group):
        return False
    if len(group) == 1:
        return True
    key, value = group
    is_repr = any(f"'{key}': {opening}'{value}'" in rendered for opening in ("", "["))
    return not is_repr and f'{key}\\"' not in rendered
