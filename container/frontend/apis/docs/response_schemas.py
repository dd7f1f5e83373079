"""What the routes answer, as /openapi.json describes it; nothing is parsed with these.

Fields are those of TGI (docs/openapi.json at v3.3.7) and of OpenAI's API reference.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base of all answers: what may come is said, what is not said may come too."""

    model_config = ConfigDict(extra="allow")


class TgiError(Answer):
    """TGI's error object."""

    error: str
    error_type: str


class OpenAIErrorDetails(Answer):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Answer):
    """OpenAI's error object."""

    error: OpenAIErrorDetails


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


class BestOfSequence(Answer):
    """One of the completions that `best_of` did not choose."""

    generated_text: str
    finish_reason: FinishReason
    deadline_exceeded: bool = False
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[GeneratedToken]
    top_tokens: list[list[GeneratedToken]] = []


class Details(Answer):
    """How a text came about. `top_tokens` only where asked for."""

    finish_reason: FinishReason
    deadline_exceeded: bool = False
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[GeneratedToken]
    top_tokens: list[list[GeneratedToken]] = []
    best_of_sequences: list[BestOfSequence] = []


class GenerateAnswer(Answer):
    """A generated text; `details` only where asked for."""

    generated_text: str
    details: Details | None = None


class StreamDetails(Answer):
    """What the last event of a stream tells of it."""

    finish_reason: FinishReason
    deadline_exceeded: bool = False
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamEvent(Answer):
    """One event of a generate stream; only the last has `generated_text`."""

    index: int
    token: GeneratedToken
    top_tokens: list[GeneratedToken] = []
    generated_text: str | None
    details: StreamDetails | None


class TextToken(Answer):
    """A token and the bytes of the text that it stands for."""

    id: int
    text: str
    start: int
    stop: int


class ChatTokens(Answer):
    """A rendered chat and its tokens."""

    tokenize_response: list[TextToken]
    templated_text: str


class Adapter(Answer):
    """A registered LoRA adapter."""

    name: str
    src: str
    loaded: bool
    pin: bool


class AdapterList(Answer):
    """All of them."""

    adapters: list[Adapter]


class ExecutionParameters(Answer):
    """What a batch transform job should use, in SageMaker's own words."""

    MaxConcurrentTransforms: int
    BatchStrategy: str
    MaxPayloadInMB: int


class ServerInfo(Answer):
    """The served model and the limits."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str


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
    """What the model said."""

    role: Literal["assistant"]
    content: str | None


class ChatChoice(Answer):
    """One of the answers."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]


class ChatCompletion(Answer):
    """A chat, answered."""

    object: Literal["chat.completion"]
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(Answer):
    """One of the texts."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "content_filter"]


class TextCompletion(Answer):
    """Prompts, completed."""

    object: Literal["text_completion"]
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class ServingStatus(Answer):
    """What `llm_serving` tells of itself; the other fields are there when it is running."""

    status: Literal["running", "not started"]
    message: str | None = None
    model_name: str | None = None


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


class MessageUsage(Answer):
    """Token counts of a message; `input_tokens` leaves out those that were in the cache."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


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


class TokenCount(Answer):
    """The tokens of a conversation."""

    input_tokens: int


class AnthropicErrorDetails(Answer):
    """What went wrong, in Anthropic's words."""

    type: str
    message: str


class AnthropicError(Answer):
    """Anthropic's error object."""

    type: Literal["error"]
    error: AnthropicErrorDetails


class Deleted(Answer):
    """What was dropped."""

    id: str
    object: Literal["response"]
    deleted: bool
