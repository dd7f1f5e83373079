"""Remedies of calls in earlier messages: other ids, and other forms of their arguments."""

import hashlib
import re
import string
from collections.abc import Callable
from typing import Any

from container.text.history.arguments import as_object, as_text, with_text_values
from container.text.history.content import Message

Messages = list[Message]

# Mistral's templates require ids of this form.
SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_DIGITS = string.digits + string.ascii_letters


def short_ids(messages: Messages) -> Messages:
    """Replace ids of calls by nine letters and digits, except those that have this form."""
    return _with_ids(messages, lambda call, _: _short(call["id"]))


def function_ids(messages: Messages) -> Messages:
    """Replace ids of calls by Kimi's, with the function's name: its template writes ids only."""
    return _with_ids(messages, lambda call, index: f"functions.{call['function']['name']}:{index}")


def arguments_as_text(messages: Messages) -> Messages:
    """Write the arguments of calls as text, for templates that concatenate them."""
    return _with_arguments(messages, as_text)


def arguments_as_objects(messages: Messages) -> Messages:
    """Write cut arguments as objects, for templates that iterate over them or write JSON."""
    return _with_arguments(messages, as_object)


def values_as_text(messages: Messages) -> Messages:
    """Write the values of arguments as text, for templates that concatenate them."""
    return _with_arguments(messages, with_text_values)


def _with_arguments(messages: Messages, convert: Callable[[Any], Any]) -> Messages:
    def converted(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return call | {"function": function | {"arguments": convert(function["arguments"])}}

    return [
        message | {"tool_calls": list(map(converted, message["tool_calls"]))}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _with_ids(messages: Messages, new_id: Callable[[dict[str, Any], int], str]) -> Messages:
    """Return the messages with other ids; `new_id` gets a call and its index of all calls."""
    ids: dict[str, str] = {}
    num_calls = 0
    written: Messages = []
    for message in messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                ids[call["id"]] = new_id(call, num_calls)
                calls.append(call | {"id": ids[call["id"]]})
                num_calls += 1
            message = message | {"tool_calls": calls}
        elif "tool_call_id" in message:
            known = message["tool_call_id"]
            message = message | {"tool_call_id": ids.get(known) or _short(known)}
        written.append(message)
    return written


def _short(call_id: str) -> str:
    if SHORT_ID.fullmatch(call_id):
        return call_id
    digest = hashlib.sha256(call_id.encode("utf-8", "replace")).digest()
    return "".join(_DIGITS[byte % len(_DIGITS)] for byte in digest[:9])
