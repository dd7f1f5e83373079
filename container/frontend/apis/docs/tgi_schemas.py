"""The responses of TGI's routes, as in its docs/openapi.json at v3.3.7."""

from typing import Literal

from pydantic import Field

from container.frontend.apis.docs.response_schemas import Answer


class TgiError(Answer):
    """TGI's error object."""

    error: str
    error_type: str


class PrefillToken(Answer):
    """A token of the prompt; the first has no log-probability."""

    id: int
    text: str
    logprob: float | None


class GeneratedToken(Answer):
    """A token of the completion."""

    id: int
    text: str
    logprob: float | None
    special: bool


FinishReason = Literal["length", "eos_token", "stop_sequence"]


class CompletionDetails(Answer):
    """Details of one completion. `top_tokens` only on request."""

    finish_reason: FinishReason
    deadline_exceeded: bool = False
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[GeneratedToken]
    top_tokens: list[list[GeneratedToken]] = Field(default=[])


class BestOfSequence(CompletionDetails):
    """One of the completions that `best_of` did not choose."""

    generated_text: str


class Details(CompletionDetails):
    """Details of the answered completion, and the completions that `best_of` did not choose."""

    best_of_sequences: list[BestOfSequence] = Field(default=[])


class GenerateAnswer(Answer):
    """A generated text; `details` only on request."""

    generated_text: str
    details: Details | None = None


class StreamDetails(Answer):
    """Details in the last event of a stream."""

    finish_reason: FinishReason
    deadline_exceeded: bool = False
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamEvent(Answer):
    """One event of a generate stream; only the last has `generated_text`."""

    index: int
    token: GeneratedToken
    top_tokens: list[GeneratedToken] = Field(default=[])
    generated_text: str | None
    details: StreamDetails | None


class TextToken(Answer):
    """A token and the range of the text that it stands for."""

    id: int
    text: str
    start: int
    stop: int


class ChatTokens(Answer):
    """A rendered chat and its tokens."""

    tokenize_response: list[TextToken]
    templated_text: str
