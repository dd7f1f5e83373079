"""Joins the events of a stream to the answer that the client would have got without streaming."""

import json
from collections.abc import Callable
from typing import Any, Protocol

from sagemaker_deploy.proxy.translation.events import Json

# Deltas that are parts of one text; other values replace what came before.
TEXTS = ("content", "reasoning_content", "reasoning", "refusal", "text")
LISTS = ("token_ids",)


class Join(Protocol):
    """Collects events."""

    def add(self, event: Json) -> None:
        """Take one event."""
        ...

    def is_complete(self) -> bool:
        """Return whether the last event has come."""
        ...

    def result(self) -> Json:
        """Return the whole answer; one that was cut ends by length."""
        ...


class ChatJoin:
    """Chat chunks to a chat completion, or text chunks to a completion."""

    def __init__(self, name: str) -> None:
        self._object = name
        self._head: Json = {}
        self._choices: dict[int, Json] = {}

    def add(self, event: Json) -> None:
        """Take one chunk."""
        for key, value in event.items():
            if key != "choices" and (value is not None or key not in self._head):
                self._head[key] = value
        for chunk in event.get("choices") or []:
            index = chunk.get("index", 0)
            _merge_choice(self._choices.setdefault(index, {"index": index}), chunk)

    def is_complete(self) -> bool:
        """Return whether every choice has a finish reason."""
        choices = self._choices.values()
        return bool(choices) and all(choice.get("finish_reason") for choice in choices)

    def result(self) -> Json:
        """Return the completion."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            choice["finish_reason"] = choice.get("finish_reason") or "length"
            if self._object == "chat.completion":
                _finish_message(choice)
        return self._head | {"object": self._object, "choices": choices}


def _merge_choice(choice: Json, chunk: Json) -> None:
    for key, value in chunk.items():
        if key == "delta":
            _merge_delta(choice.setdefault("message", {"role": "assistant"}), value or {})
        elif key == "logprobs":
            choice[key] = _joined_lists(choice.get(key), value)
        else:
            _merge(choice, key, value)


def _merge_delta(message: Json, delta: Json) -> None:
    for key, value in delta.items():
        if key == "tool_calls":
            calls: list[Json] = message.setdefault("tool_calls", [])
            for part in value or []:
                _merge_call(calls, part)
        else:
            _merge(message, key, value)


def _merge(into: Json, key: str, value: Any) -> None:
    if key in TEXTS and isinstance(value, str):
        into[key] = (into.get(key) or "") + value
    elif key in LISTS and isinstance(value, list):
        into[key] = (into.get(key) or []) + value
    elif value is not None or key not in into:
        into[key] = value


def _merge_call(calls: list[Json], part: Json) -> None:
    index = part.get("index", len(calls))
    call = next((call for call in calls if call["index"] == index), None)
    if call is None:
        call = {"index": index, "type": "function", "function": {"name": "", "arguments": ""}}
        calls.append(call)
    function = part.get("function") or {}
    call["function"]["name"] = function.get("name") or call["function"]["name"]
    call["function"]["arguments"] += function.get("arguments") or ""
    call |= {key: part[key] for key in ("id", "type") if part.get(key)}


def _joined_lists(old: Any, new: Any) -> Any:
    """Join log-probabilities: objects whose values are parallel lists."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return old if new is None else new
    return {
        key: (old.get(key) or []) + value if isinstance(value, list) else value
        for key, value in new.items()
    } | {key: value for key, value in old.items() if key not in new}


def _finish_message(choice: Json) -> None:
    message = choice.setdefault("message", {"role": "assistant"})
    message.setdefault("content", None)
    message["role"] = message.get("role") or "assistant"
    for call in message.get("tool_calls") or []:
        call.pop("index", None)


class MessageJoin:
    """Anthropic's typed events to a message."""

    def __init__(self) -> None:
        self._message: Json = {}
        self._blocks: dict[int, Json] = {}
        self._arguments: dict[int, str] = {}
        self._is_complete = False

    def add(self, event: Json) -> None:
        """Take one event."""
        kind, index = event.get("type"), event.get("index", 0)
        if kind == "message_start":
            self._message = dict(event["message"])
        elif kind == "content_block_start":
            self._blocks[index] = dict(event["content_block"])
        elif kind == "content_block_delta":
            self._add_delta(index, event["delta"])
        elif kind == "message_delta":
            self._message |= event["delta"]
            usage = {key: n for key, n in (event.get("usage") or {}).items() if n is not None}
            self._message["usage"] = (self._message.get("usage") or {}) | usage
        elif kind == "message_stop":
            self._is_complete = True

    def _add_delta(self, index: int, delta: Json) -> None:
        block = self._blocks[index]
        for name in ("text", "thinking", "signature"):
            if name in delta:
                block[name] = block.get(name, "") + delta[name]
        if "partial_json" in delta:
            self._arguments[index] = self._arguments.get(index, "") + delta["partial_json"]
        if "citation" in delta:
            block["citations"] = [*(block.get("citations") or []), delta["citation"]]

    def is_complete(self) -> bool:
        """Return whether the message has stopped."""
        return self._is_complete

    def result(self) -> Json:
        """Return the message."""
        for index, text in self._arguments.items():
            self._blocks[index]["input"] = _arguments(text)
        content = [self._blocks[index] for index in sorted(self._blocks)]
        reason = self._message.get("stop_reason") or "max_tokens"
        return self._message | {"content": content, "stop_reason": reason}


def _arguments(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError:  # cut by length
        return {}


class ResponseJoin:
    """Typed events of OpenAI's responses: the last one has the whole response."""

    LAST = ("response.completed", "response.incomplete", "response.failed")

    def __init__(self) -> None:
        self._response: Json = {}
        self._is_complete = False

    def add(self, event: Json) -> None:
        """Take one event."""
        if "response" in event:
            self._response = event["response"]
            self._is_complete = event.get("type") in self.LAST

    def is_complete(self) -> bool:
        """Return whether the response has ended."""
        return self._is_complete

    def result(self) -> Json:
        """Return the response."""
        return self._response


class GenerateJoin:
    """TGI's token events to a generate answer; `details` as the request has it."""

    def __init__(self, *, details: bool) -> None:
        self._details = details
        self._tokens: list[Json] = []
        self._top_tokens: list[Any] = []
        self._text: str | None = None
        self._last: Json = {}

    def add(self, event: Json) -> None:
        """Take one event."""
        if token := event.get("token"):
            self._tokens.append(token)
        if event.get("top_tokens"):
            self._top_tokens.append(event["top_tokens"])
        if event.get("generated_text") is not None:
            self._text, self._last = event["generated_text"], event.get("details") or {}

    def is_complete(self) -> bool:
        """Return whether the generated text has come."""
        return self._text is not None

    def result(self) -> Json:
        """Return the answer."""
        parts = (str(token["text"]) for token in self._tokens if not token.get("special"))
        answer: Json = {"generated_text": "".join(parts) if self._text is None else self._text}
        if not self._details and not self._last.get("deadline_exceeded"):
            return answer
        details = {"finish_reason": "length", "generated_tokens": len(self._tokens)} | self._last
        details.pop("input_length", None)  # of streams only
        details |= {"prefill": [], "tokens": self._tokens if self._details else []}
        if self._top_tokens:
            details["top_tokens"] = self._top_tokens
        return answer | {"details": details}


JOINS: dict[str, Callable[[], Join]] = {
    "chat": lambda: ChatJoin("chat.completion"),
    "completions": lambda: ChatJoin("text_completion"),
    "messages": MessageJoin,
    "responses": ResponseJoin,
}
