"""The responses of OpenAI's routes, as in its API reference."""

from typing import Any, Literal

from container.frontend.apis.docs.response_schemas import Answer


class OpenAIErrorDetails(Answer):
    """The fields of OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Answer):
    """OpenAI's error object."""

    error: OpenAIErrorDetails


class Model(Answer):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Answer):
    """The served models."""

    object: Literal["list"]
    data: list[Model]


class Usage(Answer):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(Answer):
    """A message of the model."""

    role: Literal["assistant"]
    content: str | None


class ChatChoice(Answer):
    """One of the generated messages."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]


class ChatCompletion(Answer):
    """The answer to a chat."""

    object: Literal["chat.completion"]
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(Answer):
    """One of the generated texts."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "content_filter"]


class TextCompletion(Answer):
    """The completions of prompts."""

    object: Literal["text_completion"]
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class ResponseUsage(Answer):
    """Token counts of a response."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class ModelAnswer(Answer):
    """A response: items of reasoning, text and calls."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage


class Deleted(Answer):
    """A deleted response."""

    id: str
    object: Literal["response"]
    deleted: bool
