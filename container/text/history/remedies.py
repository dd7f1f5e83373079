"""Remedies: other ways to write a conversation, for templates that lose or refuse a part of it.

Each is a pure function from messages to messages, and changes nothing that it is not for. They
stand in `REMEDIES` from the mildest to the strongest. A message has `role` and `content`; calls
have an id each, results a `tool_call_id`.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any

from container.text.history.arguments import as_text
from container.text.history.call_remedies import (
    arguments_as_objects,
    arguments_as_text,
    function_ids,
    short_ids,
    values_as_text,
)
from container.text.history.content import Message, around, concatenated, is_empty

Messages = list[Message]
Remedy = Callable[[Messages], Messages]
Write = Callable[[list[dict[str, Any]]], str]  # writes the calls of a message

ROLES = ("system", "developer", "user", "assistant", "tool")


def developer_as_system(messages: Messages) -> Messages:
    """Write developer messages as the system's, the role's older name."""
    return [
        message | {"role": "system"} if message["role"] == "developer" else message
        for message in messages
    ]


def unknown_as_user(messages: Messages) -> Messages:
    """Write messages of roles that no template knows as the user's."""
    return [
        message if message["role"] in ROLES else message | {"role": "user"} for message in messages
    ]


def one_system_message(messages: Messages) -> Messages:
    """Join the system messages at the start; write later ones as the user's."""
    first = list(itertools.takewhile(lambda message: message["role"] == "system", messages))
    rest = [
        message | {"role": "user"} if message["role"] == "system" else message
        for message in messages[len(first) :]
    ]
    return [*_as_one(first), *rest]


def developer_in_system(messages: Messages) -> Messages:
    """Join the system's and the developer's messages at the start, for templates that take one."""
    return one_system_message(developer_as_system(messages))


def system_in_user(messages: Messages) -> Messages:
    """Write system messages into the user's next message."""
    written: Messages = []
    pending: Messages = []
    for message in [*messages, {"role": "end", "content": ""}]:
        if message["role"] == "system":
            pending.append(message | {"role": "user"})
            continue
        if pending and message["role"] == "user":
            pending.append(message)
        written += _as_one(pending)
        if not pending or message["role"] != "user":
            written.append(message)
        pending = []
    return written[:-1]


def text_before_calls(messages: Messages) -> Messages:
    """Write text and calls of one message as two messages."""
    return _split_text(messages, between=[])


def text_before_calls_with_user(messages: Messages) -> Messages:
    """Write text and calls as two messages with an empty turn of the user between them."""
    return _split_text(messages, between=[{"role": "user", "content": ""}])


def one_call_per_message(messages: Messages) -> Messages:
    """Write each call as a separate message, followed by its result."""
    written: Messages = []
    calling: Message = {}  # the message with several calls whose results are collected
    results: Messages = []
    for message in [*messages, {"role": "end", "content": ""}]:
        if calling and message["role"] == "tool":
            results.append(message)
            continue
        if calling:
            written += _one_by_one(calling, results)
            calling, results = {}, []
        if len(message.get("tool_calls") or []) > 1:
            calling = message
        else:
            written.append(message)
    return written[:-1]


def with_calls_as(write: Write) -> Remedy:
    """Return the remedy that appends calls to the message's text, for templates without calls."""

    def calls_as_text(messages: Messages) -> Messages:
        written: Messages = []
        for message in messages:
            calls = message.get("tool_calls")
            if calls:
                message = {key: value for key, value in message.items() if key != "tool_calls"}
                message["content"] = concatenated([message["content"], write(calls)])
            written.append(message)
        return written

    return calls_as_text


def as_json(calls: list[dict[str, Any]]) -> str:
    """Write calls as the JSON that this server asks for where a template knows no calls."""
    return "; ".join(map(_described, calls))


calls_as_text = with_calls_as(as_json)


def results_as_user(messages: Messages) -> Messages:
    """Write the results of calls as the user's messages."""
    return [
        {"role": "user", "content": around("The function's result: ", message["content"])}
        if message["role"] == "tool"
        else message
        for message in messages
    ]


def without_empty(messages: Messages) -> Messages:
    """Leave out earlier messages of the assistant that are empty, such as answers cut at once."""
    *earlier, last = messages
    non_empty = [other for other in earlier if other["role"] != "assistant" or not is_empty(other)]
    return [*non_empty, last]


def merged_turns(messages: Messages) -> Messages:
    """Join consecutive messages of one role, except those with calls."""
    merged: Messages = []
    for (_, may_join), group in itertools.groupby(messages, _merge_key):
        messages_of_role = list(group)
        merged += _as_one(messages_of_role) if may_join else messages_of_role
    return merged


def user_first(messages: Messages) -> Messages:
    """Begin the conversation with an empty message of the user."""
    num_system = 0
    while num_system < len(messages) and messages[num_system]["role"] in ("system", "developer"):
        num_system += 1
    rest = messages[num_system:]
    if rest and rest[0]["role"] == "user":
        return messages
    return [*messages[:num_system], {"role": "user", "content": ""}, *rest]


def one_message(messages: Messages) -> Messages:
    """Write everything as one message of the user, except the answer that is to be continued."""
    *earlier, last = calls_as_text(messages)
    open_answer = [last] if last["role"] == "assistant" else []
    earlier += [] if open_answer else [last]
    contents = [
        around(f"{message['role']}: " if len(earlier) > 1 else "", message["content"])
        for message in earlier
    ]
    return [{"role": "user", "content": concatenated(contents)}, *open_answer]


REMEDIES: tuple[Remedy, ...] = (
    developer_as_system,
    one_system_message,
    developer_in_system,
    system_in_user,
    short_ids,
    function_ids,
    arguments_as_text,
    arguments_as_objects,
    values_as_text,
    text_before_calls,
    text_before_calls_with_user,
    one_call_per_message,
    results_as_user,
    calls_as_text,
    unknown_as_user,
    without_empty,
    merged_turns,
    user_first,
    one_message,
)


def _as_one(messages: Messages) -> Messages:
    """Return messages as one, or none."""
    if len(messages) < 2:
        return messages
    return [messages[0] | {"content": concatenated(message["content"] for message in messages)}]


def _merge_key(message: Message) -> tuple[str, bool]:
    """Return the role, and whether messages of it may be joined: those without calls."""
    return message["role"], message["role"] != "tool" and not message.get("tool_calls")


def _one_by_one(calling: Message, results: Messages) -> Messages:
    """Write the calls of one message as separate messages, each with its first result."""
    first_results = {result["tool_call_id"]: result for result in reversed(results)}
    rest = [result for result in results if first_results[result["tool_call_id"]] is not result]
    written: Messages = []
    for index, call in enumerate(calling["tool_calls"]):
        first = {} if index == 0 else {"content": ""}
        written.append(calling | {"tool_calls": [call]} | first)
        if call["id"] in first_results:
            written.append(first_results.pop(call["id"]))
    return [*written, *first_results.values(), *rest]


def _described(call: dict[str, Any]) -> str:
    name = json.dumps(call["function"]["name"], ensure_ascii=False)
    return f'{{"name": {name}, "parameters": {as_text(call["function"]["arguments"])}}}'


def _split_text(messages: Messages, between: Messages) -> Messages:
    written: Messages = []
    for message in messages:
        if message.get("tool_calls") and not is_empty(message | {"tool_calls": []}):
            text = {key: value for key, value in message.items() if key != "tool_calls"}
            calls = {"role": message["role"], "content": "", "tool_calls": message["tool_calls"]}
            written += [text, *between, calls]
        else:
            written.append(message)
    return written
