"""OpenAI's chat completions shape, as TGI's Messages API and OpenAI's clients send it."""

from typing import Annotated, Any, Literal

from pydantic import Field

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.bodies import Body


class TextPart(Body):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class ImagePart(Body):
    """Known, and refused by name: the served models read text."""

    type: Literal["image_url", "input_audio", "file"]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Body):
    """One turn of a conversation."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(Body):
    """What a stream adds."""

    include_usage: bool | None = False


class ChatRequest(Body):
    """A conversation to be continued. Sampling is on unless `temperature` is 0."""

    messages: list[Message]
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | list[float] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    response_format: dict[str, Any] | None = None

    @property
    def stops(self) -> list[str]:
        """Stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def max_new_tokens(self) -> int | None:
        """The limit under either of its names; the newer one wins."""
        return (
            self.max_completion_tokens
            if self.max_completion_tokens is not None
            else self.max_tokens
        )

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


# What OpenAI knows and this version does not offer: the values that mean "off".
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "frequency_penalty": (None, 0.0),
    "presence_penalty": (None, 0.0),
    "logit_bias": (None, {}, []),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
}


def check(request: ChatRequest, *, max_stops: int) -> None:
    """Check ranges. Raises InvalidParameter, or UnsupportedParameter for what is not offered."""
    for name, neutral in NOT_OFFERED.items():
        if getattr(request, name) not in neutral:
            raise UnsupportedParameter(f"`{name}` is not supported by this server", field=name)
    _require(bool(request.messages), "messages", "must not be empty")
    r = request
    in_range = r.temperature is None or 0 <= r.temperature <= 100
    _require(in_range, "temperature", "must be >= 0.0")
    _require(r.top_p is None or 0 < r.top_p <= 1, "top_p", "must be > 0.0 and <= 1.0")
    _require(r.top_k is None or r.top_k > 0, "top_k", "must be strictly positive")
    _require(r.max_new_tokens is None or r.max_new_tokens > 0, "max_tokens", "must be at least 1")
    _require(
        len(r.stops) <= max_stops,
        "stop",
        f"supports up to {max_stops} stop sequences. Given: {len(r.stops)}",
    )
    _require(r.seed is None or -(2**63) <= r.seed < 2**63, "seed", "must be a 64-bit integer")


def template_messages(request: ChatRequest) -> list[dict[str, Any]]:
    """Give the messages the form that chat templates read. Raises UnsupportedParameter."""
    return [_template_message(m, index) for index, m in enumerate(request.messages)]


def _template_message(message: Message, index: int) -> dict[str, Any]:
    fields = message.model_dump(exclude_none=True, exclude={"content"})
    where = f"messages[{index}].content"
    if message.content is None:
        _require("tool_calls" in fields, where, "must be given")
        return fields
    if isinstance(message.content, str):
        return fields | {"content": message.content}
    text = ""
    for part in message.content:
        if isinstance(part, ImagePart):
            raise UnsupportedParameter(
                f"`{where}` has a part of type {part.type!r}; this model reads text only",
                field=where,
            )
        text += part.text
    return fields | {"content": text}


def _require(holds: bool, name: str, rule: str) -> None:
    if not holds:
        raise InvalidParameter(f"`{name}` {rule}", field=name)
