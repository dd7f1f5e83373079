"""The responses of Anthropic's routes, as in its API reference."""

from typing import Any, Literal

from container.frontend.apis.docs.response_schemas import Answer


class MessageUsage(Answer):
    """Token counts of a message; `input_tokens` leaves out those that were in the cache."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: dict[str, int]


class AnthropicMessage(Answer):
    """Anthropic's answer: blocks of thinking, text and tool calls."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal[
        "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
    ]
    stop_sequence: str | None
    usage: MessageUsage
    context_management: dict[str, Any] | None = None


class TokenCount(Answer):
    """The tokens of a conversation."""

    input_tokens: int
    context_management: dict[str, int] | None = None


class AnthropicErrorDetails(Answer):
    """The fields of Anthropic's error object."""

    type: str
    message: str


class AnthropicError(Answer):
    """Anthropic's error object."""

    type: Literal["error"]
    error: AnthropicErrorDetails
