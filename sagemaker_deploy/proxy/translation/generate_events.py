"""TGI's token events as OpenAI's chunks, and the other way around."""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from sagemaker_deploy.proxy.translation.events import Json

REASONS = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}


class ChunksFromGenerate:
    """Translates token events to chunks of a chat or a completion.

    TGI leaves a stop string in the text and OpenAI does not, so the end of the text is held back
    as long as it may belong to one.
    """

    def __init__(self, model: str, stop: Sequence[str], *, chat: bool) -> None:
        prefix, name = (
            ("chatcmpl", "chat.completion.chunk") if chat else ("cmpl", "text_completion")
        )
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": name,
            "created": int(time.time()),
            "model": model,
        }
        self._stop = tuple(stop)
        self._keep = max(map(len, stop), default=1) - 1
        self._chat = chat
        self._pending = ""
        self._num_tokens = 0
        self._has_begun = False
        self._is_complete = False

    def feed(self, event: Json) -> Iterator[Json]:
        """Yield the chunks of a token event."""
        if self._chat and not self._has_begun:
            self._has_begun = True
            yield self._chunk({"delta": {"role": "assistant", "content": ""}})
        token = event.get("token") or {}
        self._num_tokens += 1
        if not token.get("special"):
            self._pending += str(token.get("text") or "")
        if _is_last(event):
            yield from self._last(event.get("details") or {})
        elif len(self._pending) > self._keep:
            cut = len(self._pending) - self._keep
            text, self._pending = self._pending[:cut], self._pending[cut:]
            yield self._text(text)

    def end(self) -> Iterator[Json]:
        """Yield the text held back, if there was no last event."""
        if self._pending and not self._is_complete:
            yield self._text(self._pending)

    def is_complete(self) -> bool:
        """Return whether the whole text has come."""
        return self._is_complete

    def _last(self, details: Json) -> Iterator[Json]:
        self._is_complete = True
        reason = details.get("finish_reason")
        for stop in self._stop:
            if self._pending.endswith(stop):
                self._pending, reason = self._pending.removesuffix(stop), "stop_sequence"
                break
        yield self._text(self._pending)
        yield self._text("", REASONS.get(str(reason), "stop"))
        prompt, completion = details.get("input_length") or 0, details.get("generated_tokens")
        completion = completion or self._num_tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": completion}
        usage["total_tokens"] = prompt + completion
        yield self._head | {"choices": [], "usage": usage}

    def _text(self, text: str, reason: str | None = None) -> Json:
        part: Json = {"text": text} if not self._chat else {"delta": {"content": text}}
        return self._chunk(part | {"finish_reason": reason})

    def _chunk(self, part: Json) -> Json:
        choice = {"index": 0, "logprobs": None, "finish_reason": None} | part
        return self._head | {"choices": [choice]}


class GenerateFromChunks:
    """Translates chunks of a completion to token events; their ids are vLLM's `token_ids`."""

    def __init__(self) -> None:
        self._text = ""
        self._waiting: Json | None = None
        self._reason: str | None = None
        self._num_tokens = 0
        self._usage: Json = {}

    def feed(self, event: Json) -> Iterator[Json]:
        """Yield the event of the chunk before this one: the last one has the whole text."""
        self._usage = event.get("usage") or self._usage
        for choice in event.get("choices") or []:
            if choice.get("text") or choice.get("token_ids"):
                if self._waiting:
                    yield self._waiting
                self._waiting = self._token(choice)
            if choice.get("finish_reason"):
                self._reason = _reason(choice)

    def end(self) -> Iterator[Json]:
        """Yield the last event, or, without a finish reason, the last token."""
        if self._reason is None:
            yield from filter(None, [self._waiting])
            return
        last = self._waiting or {"index": 0, "token": _token("", 0, None), "top_tokens": []}
        details = {
            "finish_reason": self._reason,
            "generated_tokens": self._usage.get("completion_tokens") or self._num_tokens,
            "input_length": self._usage.get("prompt_tokens") or 0,
            "seed": None,
        }
        yield last | {"generated_text": self._text, "details": details}

    def is_complete(self) -> bool:
        """Return whether the finish reason has come."""
        return self._reason is not None

    def _token(self, choice: Json) -> Json:
        self._num_tokens += len(choice.get("token_ids") or [0])
        text = choice.get("text") or ""
        self._text += text
        logprobs = ((choice.get("logprobs") or {}).get("token_logprobs")) or [None]
        token = _token(text, (choice.get("token_ids") or [0])[-1], logprobs[-1])
        return {
            "index": self._num_tokens,
            "token": token,
            "top_tokens": [],
            "generated_text": None,
            "details": None,
        }


def _is_last(event: Json) -> bool:
    return event.get("generated_text") is not None or bool(event.get("details"))


def _token(text: str, token_id: int, logprob: Any) -> Json:
    return {"id": token_id, "text": text, "logprob": logprob, "special": False}


def _reason(choice: Json) -> str:
    if choice["finish_reason"] == "length":
        return "length"
    return "stop_sequence" if isinstance(choice.get("stop_reason"), str) else "eos_token"


class GenerateFromLmi:
    """Gives LMI's token events TGI's names."""

    def __init__(self) -> None:
        self._num_tokens = 0
        self._text = ""
        self._is_complete = False

    def feed(self, event: Json) -> Iterator[Json]:
        """Yield the event with TGI's fields."""
        token = event.get("token") or {}
        self._num_tokens += 1
        self._text += str(token.get("text") or "")
        is_last = _is_last(event)
        self._is_complete = self._is_complete or is_last
        details = dict(event.get("details") or {}) if is_last else None
        logprob = token.get("logprob", token.get("log_prob"))
        yield {
            "index": self._num_tokens,
            "token": _token(str(token.get("text") or ""), token.get("id") or 0, logprob),
            "top_tokens": [],
            "generated_text": (event.get("generated_text") or self._text) if is_last else None,
            "details": details,
        }

    def end(self) -> Iterator[Json]:
        """Yield nothing: the last event had the end."""
        yield from ()

    def is_complete(self) -> bool:
        """Return whether the whole text has come."""
        return self._is_complete
