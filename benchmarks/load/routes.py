"""The routes that can be measured: how a stream is asked for, and how its events are read."""

from typing import Any, Protocol


class LoadError(Exception):
    """The server did not answer as it should; the measurement is void."""


class Route(Protocol):
    """How a stream is asked for, and where its events have what is counted."""

    path: str

    def body(self, prompt: str, new_tokens: int) -> dict[str, Any]:
        """Return the request's body."""

    def read(self, event: dict[str, Any]) -> tuple[bool, int | None]:
        """Return whether an event has a token, and the prompt's length where it tells that."""


class GenerateRoute:
    """TGI's route. It has no way past an end token, so it is for models that never choose one."""

    path = "/generate_stream"

    def body(self, prompt: str, new_tokens: int) -> dict[str, Any]:
        """Ask greedily, which is the default."""
        return {"inputs": prompt, "parameters": {"max_new_tokens": new_tokens, "details": True}}

    def read(self, event: dict[str, Any]) -> tuple[bool, int | None]:
        """Every event has a token; the last one has the details."""
        if "token" not in event:
            raise LoadError(f"a stream broke off: {event}")
        return True, (event.get("details") or {}).get("input_length")


class CompletionsRoute:
    """OpenAI's route, which can go on after an end token."""

    path = "/v1/completions"

    def body(self, prompt: str, new_tokens: int) -> dict[str, Any]:
        """Ask greedily for a full length; with `logprobs` a token without text is an event, too."""
        return {
            "prompt": prompt,
            "max_tokens": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def read(self, event: dict[str, Any]) -> tuple[bool, int | None]:
        """Every event with a choice has a token; the last one has the usage."""
        if "choices" not in event:
            raise LoadError(f"a stream broke off: {event}")
        usage = event.get("usage") or {}
        return bool(event["choices"]), usage.get("prompt_tokens")
