"""Renders probe conversations with a chat template, to learn how it writes.

The probes' texts appear in no template, so they mark the positions in the rendered text.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

# Renders messages and tools, without a prompt for the reply if `opens_reply` is false. Raises
# anything for what the template refuses.
Render = Callable[..., str]
Call = tuple[str, dict[str, Any]]

USER, CONTENT = "probeuser", "probecontent"
NAMES = ("probe_first", "probe_other")
ARGUMENTS: list[dict[str, Any]] = [{"probe_key": "probevalue"}, {"probe_second": "othervalue"}]
IDS = ("prbid0001", "prbid0002")
ATOM = re.compile(r"</?[^<>\s\"'=]*>|\[/?[A-Z_]+\]|\s+|\w+|.", re.DOTALL)


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "probe_key": {"type": "string", "description": "a text"},
        "probe_second": {"type": "string", "description": "a text"},
        "probe_count": {"type": "integer", "description": "a number"},
    },
    "required": [],
}


def _tools(names: Iterable[str]) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "function": {"name": name, "description": "A probe.", "parameters": SCHEMA},
        }
        for name in names
    ]


class Probes:
    """Renders assistant messages with one template; texts start after the user's text."""

    def __init__(self, render: Render, *, as_text: bool = False, hides: bool = False) -> None:
        """`as_text`: arguments are passed as JSON text, not as an object.

        `hides`: the tools have other names than those that are called, for templates that list the
        tools behind the user's text.
        """
        self._render = render
        self._as_text = as_text
        self._tools = _tools(("probe_listed", "probe_unused") if hides else NAMES)

    def assistant_message(self, calls: list[Call], content: str = "") -> str | None:
        """Render an assistant message; None if the template refuses it or omits the calls."""
        written = [
            {
                "id": IDS[index],
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": json.dumps(arguments) if self._as_text else arguments,
                },
            }
            for index, (name, arguments) in enumerate(calls)
        ]
        options: dict[str, Any] = {"tool_calls": written} if written else {}
        for written_content in (content, content or None):
            reply = {"role": "assistant", "content": written_content, **options}
            text = self.after_user([reply])
            if text and all(name in text for name, _ in calls):
                return text
        return None

    def opened(self) -> str:
        """Render the prompt for a reply; "" if the template refuses it."""
        return self.after_user([], opens_reply=True) or ""

    def after_user(self, replies: list[dict[str, Any]], *, opens_reply: bool = False) -> str | None:
        """Render messages after the user's; None if the template refuses them."""
        messages = [{"role": "user", "content": USER}, *replies]
        try:
            text = self._render(messages, tools=self._tools, opens_reply=opens_reply)
        except Exception:  # a template is a program and can raise anything
            return None
        start = text.rfind(USER)
        return text[start + len(USER) :] if start >= 0 else None

    def before_content(self) -> str:
        """Return the text before the content of a turn without calls."""
        plain = self.assistant_message([], CONTENT) or ""
        return plain.partition(CONTENT)[0] if CONTENT in plain else ""

    def after_content(self) -> str:
        """Return the text after the content of a turn without calls."""
        plain = self.assistant_message([], CONTENT) or ""
        return plain[plain.rfind(CONTENT) + len(CONTENT) :] if CONTENT in plain else ""


def between(text: str, start: str, stop: str) -> str:
    """Return the text from the last `start` before the first `stop` on."""
    before = text[: text.find(stop)]
    return before[before.rfind(start) + len(start) :]


def common_start(first: str, other: str) -> str:
    """Return the atoms that two texts begin with."""
    length = 0
    for atom, other_atom in zip(ATOM.findall(first), ATOM.findall(other), strict=False):
        if atom != other_atom:
            break
        length += len(atom)
    return first[:length]


def common_end(first: str, other: str) -> str:
    """Return the atoms that two texts end with."""
    length = 0
    atoms = zip(reversed(ATOM.findall(first)), reversed(ATOM.findall(other)), strict=False)
    for atom, other_atom in atoms:
        if atom != other_atom:
            break
        length += len(atom)
    return first[len(first) - length :]
