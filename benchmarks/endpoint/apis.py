"""How a stream is asked for in each API, and how its events are read."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.endpoint.outcome import Outcome
from benchmarks.endpoint.workload import Prompt


@dataclass(frozen=True, slots=True)
class Options:
    """The common fields of all requests; `extra` is added to their bodies."""

    model: str = ""
    ignore_eos: bool = False
    temperature: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Api(Protocol):
    """One API: a route, its bodies and its events."""

    path: str

    def body(self, prompt: Prompt, options: Options) -> dict[str, Any]:
        """Return the body of a request."""

    def read(self, event: dict[str, Any], outcome: Outcome) -> bool:
        """Take the counts from an event; return whether it has text. Raises ValueError."""


class Chat:
    """OpenAI's chat completions."""

    path = "/v1/chat/completions"

    def body(self, prompt: Prompt, options: Options) -> dict[str, Any]:
        """Ask for a stream with its usage."""
        return {"messages": prompt.as_messages()} | _openai(prompt, options)

    def read(self, event: dict[str, Any], outcome: Outcome) -> bool:
        """Text, thoughts and calls count."""
        _take_usage(event, outcome)
        choices = event.get("choices") or []
        deltas = [choice.get("delta") or choice.get("message") or {} for choice in choices]
        names = ("content", "reasoning_content", "reasoning", "tool_calls")
        return any(delta.get(name) for delta in deltas for name in names)


class Completions:
    """OpenAI's completions."""

    path = "/v1/completions"

    def body(self, prompt: Prompt, options: Options) -> dict[str, Any]:
        """Ask for a stream with its usage."""
        return {"prompt": prompt.as_text()} | _openai(prompt, options)

    def read(self, event: dict[str, Any], outcome: Outcome) -> bool:
        """Every choice with text counts."""
        _take_usage(event, outcome)
        return any(choice.get("text") for choice in event.get("choices") or [])


class Generate:
    """TGI's generate API; `path` is `/generate_stream`, SageMaker's bodies have `stream`."""

    path = "/generate_stream"

    def body(self, prompt: Prompt, options: Options) -> dict[str, Any]:
        """Ask for a stream with its details."""
        parameters: dict[str, Any] = {"max_new_tokens": prompt.max_tokens, "details": True}
        if options.temperature:
            parameters |= {"do_sample": True, "temperature": options.temperature}
        inputs = prompt.as_text()
        return {"inputs": inputs, "parameters": parameters | options.extra, "stream": True}

    def read(self, event: dict[str, Any], outcome: Outcome) -> bool:
        """Every event has a token; the last one has the details."""
        _refuse_error(event)
        details = event.get("details") or {}
        outcome.tokens = details.get("generated_tokens") or outcome.tokens
        if details.get("input_length"):
            outcome.prompt_tokens = details["input_length"]
        return "token" in event or bool(event.get("generated_text"))


APIS: dict[str, type[Api]] = {"chat": Chat, "completions": Completions, "generate": Generate}


def _openai(prompt: Prompt, options: Options) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": options.model,
        "max_tokens": prompt.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if options.temperature is not None:
        body["temperature"] = options.temperature
    if options.ignore_eos:
        body["ignore_eos"] = True
    return body | options.extra


def _take_usage(event: dict[str, Any], outcome: Outcome) -> None:
    _refuse_error(event)
    usage = event.get("usage") or {}
    outcome.tokens = usage.get("completion_tokens") or outcome.tokens
    if usage.get("prompt_tokens"):
        outcome.prompt_tokens = usage["prompt_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        outcome.cached_tokens = details.get("cached_tokens")


def _refuse_error(event: dict[str, Any]) -> None:
    error = event.get("error")
    if error:
        message = error.get("message") if isinstance(error, dict) else error
        raise ValueError(f"in the stream: {str(message)[:200]}")


class EventReader:
    """Puts the pieces of a body together and reads the events of server-sent events.

    A body that is one JSON object or list, as of a server that does not stream, is read as well.
    """

    def __init__(self) -> None:
        self._unread = b""

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """Yield the events that are complete now. Raises ValueError."""
        *lines, self._unread = (self._unread + piece).split(b"\n")
        return _events(lines)

    def finish(self) -> Iterator[dict[str, Any]]:
        """Yield the event of a last line without an end."""
        last, self._unread = self._unread, b""
        return _events([last])


def _events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        data = line.strip().removeprefix(b"data:").strip()
        if data.startswith((b"{", b"[{")):
            value = json.loads(data)
            yield from value if isinstance(value, list) else [value]
