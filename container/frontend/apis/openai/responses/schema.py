"""OpenAI's responses shape: items in, items out; from items to the messages that templates read."""

from typing import Any

from pydantic import Field

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.apis.openai.sampling_schema import (
    SamplingFields,
    check_sampling,
    refuse,
    require,
    within,
)
from container.frontend.apis.openai.template_inputs import (
    IMAGE_PART,
    merge_text_parts,
    read_options,
    text_part,
)
from container.frontend.apis.openai.tools_schema import read_arguments
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.request_context import MIN_DEADLINE_S
from container.frontend.web.request_body import Body, Items
from container.images.sources import ImageSource

# What OpenAI knows and this server does not offer: the values that mean "off".
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "conversation": (None,),
    "background": (None, False),
    "prompt": (None,),
    "max_tool_calls": (None,),
    "truncation": (None, "disabled"),
    "context_management": (None, []),
    "moderation": (None,),
    "image": (None,),
    "access_programs": (None,),
}
LOGPROBS = "message.output_text.logprobs"
# What `include` may ask for; the second has no effect here.
INCLUDABLE = frozenset({LOGPROBS, "reasoning.encrypted_content"})
MAX_TOP_LOGPROBS = 20  # OpenAI's own limit

# Those that have the same name in all dialects.
SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "logit_bias", "stop", "stop_token_ids", "ignore_eos",
    "include_stop_str_in_output",
)  # fmt: skip


class TextOptions(Body):
    """The format of the text."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ReasoningOptions(Body):
    """How much the model reasons; a template may have a use for it."""

    effort: str | None = None
    summary: str | None = None


class ConversationRequest(Body):
    """A conversation as items, after those of `previous_response_id`."""

    input: str | Items[dict[str, Any]] | None = None
    model: str | None = Field(default=None, max_length=1000)
    instructions: str | None = None
    tools: Items[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    truncation: str | None = None

    @property
    def items(self) -> list[dict[str, Any]]:
        """The items of `input`."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return self.input or []


class InputTokensRequest(ConversationRequest):
    """A conversation whose tokens are counted."""

    personality: str | None = None


class ResponseRequest(ConversationRequest):
    """A conversation that is continued; `store` false keeps nothing of it."""

    input: str | Items[dict[str, Any]]
    max_output_tokens: int | None = None
    request_deadline: float | None = Field(default=None, ge=MIN_DEADLINE_S)
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    include: Items[str] | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | Items[str] | None = None
    stop_token_ids: Items[int] | None = None
    ignore_eos: bool | None = False
    include_stop_str_in_output: bool | None = False
    structured_outputs: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    background: bool | None = None
    store: bool | None = None
    prompt: Any = None
    max_tool_calls: int | None = None
    top_logprobs: int | None = None
    context_management: Any = None
    moderation: Any = None
    image: Any = None
    access_programs: Any = None

    @property
    def num_logprobs(self) -> int | None:
        """How many likely tokens each token has with its log-probability; None: no scores."""
        asks = LOGPROBS in (self.include or []) or bool(self.top_logprobs)
        return (self.top_logprobs or 0) if asks else None

    @property
    def sampling(self) -> SamplingFields:
        """How tokens are picked, under the names that all dialects share."""
        return SamplingFields(
            model=self.model,
            max_tokens=self.max_output_tokens,
            **{name: getattr(self, name) for name in SAMPLING_FIELDS},
        )


# The same of `input_tokens`.
COUNT_NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "conversation": (None,),
    "personality": (None,),
    "truncation": (None, "disabled"),
}


def check_count(request: InputTokensRequest) -> None:
    """Check the fields not offered. Raises InvalidParameter or UnsupportedParameter."""
    refuse(request, COUNT_NOT_OFFERED)
    is_something = request.items or request.previous_response_id is not None
    require(bool(is_something), "input", "must be given")


def check(request: ResponseRequest, limits: RequestLimits, vocabulary: int) -> None:
    """Check ranges. Raises InvalidParameter, or UnsupportedParameter for fields not offered."""
    refuse(request, NOT_OFFERED)
    for name in request.include or []:
        if name not in INCLUDABLE:
            raise UnsupportedParameter(
                f"`include`: {name[:60]!r} is not supported by this server", field="include"
            )
    within(request.top_logprobs, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    most = request.max_output_tokens
    require(most is None or most >= 1, "max_output_tokens", f"must be >= 1. Given: {most}")
    require(request.input != [], "input", "must not be an empty list")
    check_sampling(request.sampling, limits, vocabulary)


def answer_format(request: ConversationRequest) -> dict[str, Any] | None:
    """Convert `text.format` to the form of `response_format`, which nests the schema."""
    form = request.text.format if request.text else None
    if form is None or form.get("type") != "json_schema" or "json_schema" in form:
        return form
    return {"type": "json_schema", "json_schema": form}


def template_options(request: ConversationRequest) -> dict[str, Any]:
    """Variables for the chat template. Raises InvalidParameter."""
    effort = request.reasoning.effort if request.reasoning else None
    return read_options(effort, request.chat_template_kwargs)


def chat_messages(
    request: ConversationRequest, earlier: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[ImageSource]]:
    """The items as a chat, after `earlier` ones, and its images.

    Calls that follow each other belong to one message. Raises InvalidParameter or
    UnsupportedParameter.
    """
    messages: list[dict[str, Any]] = []
    images: list[ImageSource] = []
    if request.instructions is not None:
        messages.append({"role": "system", "content": request.instructions})
    for item in earlier:
        _take_item(messages, images, item, "previous_response_id")
    for index, item in enumerate(request.items):
        _take_item(messages, images, item, f"input[{index}]")
    return messages, images


def _take_item(
    messages: list[dict[str, Any]], images: list[ImageSource], item: dict[str, Any], where: str
) -> None:
    kind = item.get("type", "message")
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    match kind:
        case "message":
            role = _string(item, "role", where)
            content = _content(item.get("content"), f"{where}.content", images)
            messages.append({"role": role, "content": content})
        case "function_call":
            function = {
                "name": _string(item, "name", where),
                "arguments": read_arguments(_arguments(item, where)),
            }
            call = {"id": _string(item, "call_id", where), "type": "function", "function": function}
            if last is None:
                last = {"role": "assistant", "content": ""}
                messages.append(last)
            last.setdefault("tool_calls", []).append(call)
        case "function_call_output":
            output = item.get("output")
            message = (
                output if isinstance(output, str) else _content(output, f"{where}.output", images)
            )
            call_id = _string(item, "call_id", where)
            messages.append({"role": "tool", "content": message, "tool_call_id": call_id})
        case "reasoning":
            return  # templates leave out the reasoning of earlier messages
        case _:
            raise UnsupportedParameter(
                f"`{where}.type`: {str(kind)[:40]!r} items are not supported by this server",
                field=f"{where}.type",
            )


def _content(content: object, where: str, images: list[ImageSource]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidParameter(f"`{where}` must be a string or a list of parts", field=where)
    parts = []
    for index, part in enumerate(content):
        field = f"{where}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "input_image":
            images.append(_image(part, field))
            parts.append(IMAGE_PART)
            continue
        if kind in ("input_file", "input_audio"):
            raise UnsupportedParameter(
                f"`{field}` is of type {kind!r}, which no model here reads", field=field
            )
        key = "refusal" if kind == "refusal" else "text"
        if kind not in ("input_text", "output_text", "text", "refusal"):
            raise InvalidParameter(f"`{field}.type` must be 'input_text'", field=f"{field}.type")
        parts.append(text_part(_string(part, key, field)))
    return merge_text_parts(parts)


def _image(part: dict[str, Any], field: str) -> ImageSource:
    if part.get("file_id") is not None:
        raise UnsupportedParameter(
            f"`{field}.file_id`: this server stores no files; give an `image_url`",
            field=f"{field}.file_id",
        )
    return ImageSource(_string(part, "image_url", field), f"{field}.image_url")


def _arguments(item: dict[str, Any], where: str) -> str | dict[str, Any] | None:
    arguments = item.get("arguments")
    if arguments is not None and not isinstance(arguments, str | dict):
        field = f"{where}.arguments"
        raise InvalidParameter(f"`{field}` must be a JSON object as a string", field=field)
    return arguments


def _string(item: dict[str, Any], key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise InvalidParameter(f"`{where}.{key}` must be a string", field=f"{where}.{key}")
    return value
