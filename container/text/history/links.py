"""Connects results with their calls: each call has an id, each result its call's id and name."""

from collections import OrderedDict
from typing import Any

from container.text.history.content import Message


def linked(messages: list[Message]) -> list[Message]:
    """Return the messages with the ids and names that a request may leave out.

    A result without an id answers the first call that has no result yet.
    """
    names: dict[str, str] = {}  # of the calls so far
    unanswered: OrderedDict[str, None] = OrderedDict()
    num_calls = 0
    written = []
    for message in messages:
        if message.get("tool_calls"):
            calls = [
                {"id": f"call_{num_calls + index}"} | call
                for index, call in enumerate(message["tool_calls"])
            ]
            num_calls += len(calls)
            names |= {call["id"]: call["function"]["name"] for call in calls}
            unanswered |= {call["id"]: None for call in calls}
            message = message | {"tool_calls": calls}
        elif message["role"] == "tool":
            message = _linked_result(message, names, unanswered)
        written.append(message)
    return written


def _linked_result(
    message: Message, names: dict[str, str], unanswered: OrderedDict[str, None]
) -> dict[str, Any]:
    call_id = message.get("tool_call_id")
    if call_id is None:
        call_id = next(iter(unanswered), "call_0")
    unanswered.pop(call_id, None)
    name = {"name": names[call_id]} if call_id in names else {}
    return name | message | {"tool_call_id": call_id}
