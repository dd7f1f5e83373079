"""Converts Anthropic's messages of content blocks to the messages that chat templates read.

    user: [tool_result, tool_result, text, image]  ->  tool, tool, user
    assistant: [thinking, text, tool_use]          ->  assistant with reasoning, text and calls
Consecutive messages of one role are merged, as Anthropic defines it.
"""

from collections.abc import Sequence
from typing import Any

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.apis.anthropic.context_edits import Turn
from container.frontend.apis.openai.template_inputs import IMAGE_PART, merge_text_parts, text_part
from container.images.sources import ImageSource

Block = dict[str, Any]
Message = dict[str, Any]
# A text that Claude Code puts before the system prompt; it differs with each request, so that no
# prefix of the prompt could be reused.
BILLING_MARK = "x-anthropic-billing-header:"


class ConversationReader:
    """Collects the messages of a request, and its images in their order.

    Texts are joined at the end: to join them as they come would copy long ones again and again.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.images: list[ImageSource] = []

    def read(self, system: str | list[Block] | None, messages: Sequence[Turn]) -> None:
        """Read `system` and `messages`. Raises InvalidParameter or UnsupportedParameter."""
        if system is not None:
            self._add("system", self._system(system))
        for index, message in enumerate(messages):
            where, content = f"messages[{index}].content", message.content
            blocks = [text_part(content)] if isinstance(content, str) else content
            if message.role == "assistant":
                self._assistant(blocks, where)
            else:
                self._user(message.role, blocks, where)
        for written in self.messages:
            _join(written)

    def _system(self, system: str | list[Block]) -> list[Block]:
        if isinstance(system, str):
            return [text_part(system)]
        texts = [_text(block, f"system[{index}]") for index, block in enumerate(system)]
        return [text_part(text) for text in texts if not text.startswith(BILLING_MARK)]

    def _user(self, role: str, blocks: list[Block], where: str) -> None:
        parts: list[Block] = []
        for index, block in enumerate(blocks):
            at = f"{where}[{index}]"
            if block.get("type") == "tool_result":
                self._add(role, parts)
                parts = []
                self._tool_result(block, at)
            else:
                parts += self._parts(block, at)
        self._add(role, parts)

    def _tool_result(self, block: Block, where: str) -> None:
        content = block.get("content")
        if content is None or isinstance(content, str):
            content = [text_part(content or "")]
        if not isinstance(content, list):
            raise _wrong(f"{where}.content", "must be a string or a list of blocks")
        parts: list[Block] = []
        for index, inner in enumerate(content):
            parts += self._parts(inner, f"{where}.content[{index}]")
        if block.get("is_error"):
            parts.insert(0, text_part("Error: "))
        self.messages.append(
            {
                "role": "tool",
                "content": parts,
                "tool_call_id": _string(block, "tool_use_id", where),
            }
        )

    def _assistant(self, blocks: list[Block], where: str) -> None:
        message: Message = {"role": "assistant", "content": []}
        calls: list[Message] = []
        for index, block in enumerate(blocks):
            at = f"{where}[{index}]"
            match block.get("type"):
                case "text":
                    message["content"].append(text_part(_text(block, at)))
                case "thinking":
                    thought = text_part(_string(block, "thinking", at))
                    message.setdefault("reasoning_content", []).append(thought)
                case "redacted_thinking":
                    continue  # encrypted by another service, and no part of the prompt there either
                case "tool_use":
                    calls.append(_call(block, at))
                case kind:
                    raise _unsupported(kind, at)
        if calls:
            message["tool_calls"] = calls
        self._append_assistant(message)

    def _append_assistant(self, message: Message) -> None:
        last = self.messages[-1] if self.messages else None
        if last is None or last["role"] != "assistant":
            self.messages.append(message)
            return
        for name in ("reasoning_content", "content", "tool_calls"):
            if name in message:
                last.setdefault(name, []).extend(message[name])

    def _add(self, role: str, parts: list[Block]) -> None:
        """Append a message, or add its parts to the last one if it has the same role."""
        if not parts:
            return
        last = self.messages[-1] if self.messages else None
        if last is not None and last["role"] == role:
            last["content"] += [text_part("\n\n"), *parts]
        else:
            self.messages.append({"role": role, "content": [*parts]})

    def _parts(self, block: Any, where: str) -> list[Block]:
        """Convert a block of a user or of a tool result to parts of text and images."""
        kind = block.get("type") if isinstance(block, dict) else None
        match kind:
            case "text":
                return [text_part(_text(block, where))]
            case "image":
                self.images.append(_image(block.get("source"), f"{where}.source"))
                return [IMAGE_PART]
            case "document":
                _refuse_citations(block, where)
                return self._document(block, where)
            case "tool_reference":
                return [text_part(f"Available: {_string(block, 'tool_name', where)}\n")]
            case "search_result":
                _refuse_citations(block, where)
                texts = _list(block, "content", where)
                head = f"{block.get('title', '')}\n{block.get('source', '')}\n"
                parts = [text_part(_text(text, f"{where}.content")) for text in texts]
                return [text_part(head), *parts]
            case _:
                raise _unsupported(kind, where)

    def _document(self, block: Block, where: str) -> list[Block]:
        source, at = block.get("source"), f"{where}.source"
        kind = source.get("type") if isinstance(source, dict) else None
        names = [block[name] for name in ("title", "context") if isinstance(block.get(name), str)]
        head = [text_part("".join(f"{name}\n" for name in names))] if names else []
        if isinstance(source, dict) and kind == "text":
            return [*head, text_part(_string(source, "data", at))]
        if isinstance(source, dict) and kind == "content":
            content = source.get("content")
            blocks = [text_part(content)] if isinstance(content, str) else content
            if not isinstance(blocks, list):
                raise _wrong(f"{at}.content", "must be a string or a list of blocks")
            inner = [self._parts(one, f"{at}.content[{i}]") for i, one in enumerate(blocks)]
            return [*head, *(part for parts in inner for part in parts)]
        raise UnsupportedParameter(
            f"`{at}.type`: documents of type {str(kind)[:40]!r} are not supported by this server; "
            "`text` and `content` are",
            field=f"{at}.type",
        )


def _join(message: Message) -> None:
    """Write the parts of a message as text, unless there are images among them."""
    for name in ("content", "reasoning_content"):
        if name in message:
            message[name] = merge_text_parts(message[name])


def _image(source: Any, where: str) -> ImageSource:
    kind = source.get("type") if isinstance(source, dict) else None
    if kind == "url":
        return ImageSource(_string(source, "url", where), f"{where}.url")
    if kind == "base64":
        data = _string(source, "data", where)
        url = f"data:{_string(source, 'media_type', where)};base64,{data}"
        return ImageSource(url, f"{where}.data")
    raise UnsupportedParameter(
        f"`{where}.type`: images of type {str(kind)[:40]!r} are not supported by this server; "
        "`base64` and `url` are",
        field=f"{where}.type",
    )


def _call(block: Block, where: str) -> Message:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise _wrong(f"{where}.input", "must be an object")
    function = {"name": _string(block, "name", where), "arguments": arguments}
    return {"id": _string(block, "id", where), "type": "function", "function": function}


def _text(block: Any, where: str) -> str:
    if not isinstance(block, dict) or block.get("type") != "text":
        raise _wrong(f"{where}.type", "must be 'text'")
    return _string(block, "text", where)


def _string(block: Block, key: str, where: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise _wrong(f"{where}.{key}", "must be a string")
    return value


def _list(block: Block, key: str, where: str) -> list[Any]:
    value = block.get(key)
    if not isinstance(value, list):
        raise _wrong(f"{where}.{key}", "must be a list")
    return value


def _refuse_citations(block: Block, where: str) -> None:
    citations = block.get("citations")
    if isinstance(citations, dict) and citations.get("enabled"):
        raise UnsupportedParameter(
            f"`{where}.citations`: citations are not supported by this server",
            field=f"{where}.citations",
        )


def _wrong(field: str, requirement: str) -> InvalidParameter:
    return InvalidParameter(f"`{field}` {requirement}", field=field)


def _unsupported(kind: Any, where: str) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"`{where}.type`: blocks of type {str(kind)[:40]!r} are not supported here",
        field=f"{where}.type",
    )
