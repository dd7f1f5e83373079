"""OpenAI's chat completions shape, as TGI's Messages API and OpenAI's clients send it."""

from typing import Annotated, Any, Literal

from pydantic import Field

from container.errors import UnsupportedParameter
from container.frontend.apis.openai.sampling_schema import (
    GenerationFields,
    check_generation,
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
from container.frontend.generation.offloading import in_pieces
from container.frontend.web.request_body import Body, Items
from container.images.sources import ImageSource


class TextPart(Body):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class ImageUrl(Body):
    """Where an image is. `detail` is read and has no effect: models have their own sizes."""

    url: str
    detail: str | None = None


class ImagePart(Body):
    """An image of a message's content, for vision-language models."""

    type: Literal["image_url"]
    image_url: ImageUrl | str


class OtherPart(Body):
    """Known, and refused by name: no served model reads these."""

    type: Literal["input_audio", "file"]


Part = Annotated[TextPart | ImagePart | OtherPart, Field(discriminator="type")]


class CalledFunction(Body):
    """A call by the assistant; `arguments` is JSON as text, or (as TGI once sent) an object."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(Body):
    """A call that the assistant has made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    """One turn of a conversation."""

    role: str
    content: str | Items[Part] | None = None
    name: str | None = None
    tool_calls: Items[ToolCall] | None = None
    reasoning_content: str | None = None
    tool_call_id: str | None = None


class ChatFields(GenerationFields):
    """The fields of a chat but for its messages. Sampling is on unless `temperature` is 0."""

    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    tools: Items[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    tool_prompt: str | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = True
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    modalities: Items[str] | None = None
    store: bool | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    functions: Items[Any] | None = None
    function_call: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    moderation: Any = None

    @property
    def shows_reasoning(self) -> bool:
        """Whether the answer has the thoughts."""
        return self.include_reasoning is not False

    @property
    def max_new_tokens(self) -> int | None:
        """The limit under either of its names; the newer one wins."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer


class ChatRequest(ChatFields):
    """A conversation to be continued."""

    messages: Items[Message]


# What OpenAI knows and this server does not offer: the values that mean "off". `user`, `metadata`,
# `service_tier` and the like say something to OpenAI's service that means nothing here.
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "web_search_options": (None,),
    "moderation": (None,),
    "store": (None, False),
    "verbosity": (None, "medium"),
}
MAX_TOP_LOGPROBS = 20  # OpenAI's own limit


def check(request: ChatRequest, limits: RequestLimits, vocabulary: int) -> None:
    """Check ranges. Raises InvalidParameter, or UnsupportedParameter for fields not offered."""
    r = request
    refuse(r, NOT_OFFERED)
    require(bool(r.messages), "messages", "must not be empty")
    both = r.continue_final_message and r.add_generation_prompt
    require(not both, "continue_final_message", "and `add_generation_prompt` exclude each other")
    check_generation(r, limits, vocabulary)
    within(r.max_completion_tokens, "max_completion_tokens", 1, None)
    within(r.top_logprobs, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    require(bool(r.logprobs) or not r.top_logprobs, "top_logprobs", "needs `logprobs`: true")


def template_options(request: ChatRequest) -> dict[str, Any]:
    """Variables for the chat template. Raises InvalidParameter."""
    return read_options(request.reasoning_effort, request.chat_template_kwargs)


def template_messages(request: ChatRequest) -> tuple[list[dict[str, Any]], list[ImageSource]]:
    """Convert the messages to the form that chat templates read; also return their images.

    Raises UnsupportedParameter.
    """
    images: list[ImageSource] = []
    numbered = enumerate(in_pieces(request.messages))
    messages = [_template_message(message, index, images) for index, message in numbered]
    return messages, images


def _template_message(message: Message, index: int, images: list[ImageSource]) -> dict[str, Any]:
    where = f"messages[{index}]"
    fields = message.model_dump(exclude_none=True, exclude={"content", "tool_calls"})
    fields["content"] = _content(message.content, f"{where}.content", images)
    if message.tool_calls:
        fields["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    has_content = (
        message.content is not None
        or bool(message.tool_calls)
        or message.reasoning_content is not None
    )
    require(has_content, f"{where}.content", "must be given")
    return fields


def _content(
    content: str | list[Part] | None, where: str, images: list[ImageSource]
) -> str | list[dict[str, str]]:
    if content is None or isinstance(content, str):
        return content or ""
    parts = []
    for index, part in enumerate(content):
        if isinstance(part, TextPart):
            parts.append(text_part(part.text))
        elif isinstance(part, ImagePart):
            image_url = part.image_url
            url = image_url if isinstance(image_url, str) else image_url.url
            images.append(ImageSource(url, f"{where}[{index}].image_url"))
            parts.append(IMAGE_PART)
        else:
            raise UnsupportedParameter(
                f"`{where}` has a part of type {part.type!r}, which no model here reads",
                field=where,
            )
    return merge_text_parts(parts)


def _template_call(call: ToolCall) -> dict[str, Any]:
    arguments = read_arguments(call.function.arguments)
    function = {"name": call.function.name, "arguments": arguments}
    template_call: dict[str, Any] = {"type": "function", "function": function}
    return template_call | {"id": call.id} if call.id is not None else template_call
