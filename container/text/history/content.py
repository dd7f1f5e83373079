"""The content of a message: a string, or a list of parts of which some are images."""

from collections.abc import Iterable
from typing import Any

Message = dict[str, Any]
Content = str | list[dict[str, Any]]
BETWEEN = "\n\n"  # stands between texts of one message


def parts_of(content: Content) -> list[dict[str, Any]]:
    """Return a content as a list of parts."""
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def is_empty(message: Message) -> bool:
    """Whether a message is empty: blanks at most, no image, no call."""
    if message.get("tool_calls"):
        return False
    parts = parts_of(message["content"])
    return all(part["type"] == "text" and not part["text"].strip() for part in parts)


def around(before: str, content: Content, after: str = "") -> Content:
    """Return a content with a text before and after it."""
    if not isinstance(content, list):
        return f"{before}{content}{after}"
    texts = [[{"type": "text", "text": text}] if text else [] for text in (before, after)]
    return [*texts[0], *content, *texts[1]]


def concatenated(contents: Iterable[Content]) -> Content:
    """Return several contents as one; empty ones leave no blanks."""
    filled = [content for content in contents if content != ""]
    texts = [content for content in filled if isinstance(content, str)]
    if len(texts) == len(filled):
        return BETWEEN.join(texts)
    parts: list[dict[str, Any]] = []
    for index, content in enumerate(filled):
        if index:
            parts.append({"type": "text", "text": BETWEEN})
        parts += parts_of(content)
    return parts
