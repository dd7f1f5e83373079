"""The schema of Anthropic's messages: the fields of a request, and those not offered here."""

import json
from typing import Any, Literal

from pydantic import Field

from container.errors import InvalidParameter, ServingError, UnsupportedParameter
from container.frontend.apis.anthropic.context_edits import ContextManagement, Turn
from container.frontend.apis.openai.sampling_schema import (
    SamplingFields,
    check_sampling,
    refuse,
    require,
    within,
)
from container.frontend.apis.openai.template_inputs import read_options
from container.frontend.apis.openai.tools_schema import read_tools
from container.frontend.chat.tools import ToolUse
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.request_context import MIN_DEADLINE_S
from container.frontend.web.request_body import Body, Items

# Fields that Anthropic has and this server does not offer: the values that mean "off".
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "container": (None,),
    "mcp_servers": (None, []),
    "billing_policy": (None,),
    "compaction": (None,),
    "diagnostics": (None,),
    "fallback_credit_token": (None,),
    "fallbacks": (None, []),
    "inference_geo": (None, "global"),
    "prefill": (None,),
    "speed": (None, "standard"),
    "thread": (None,),
}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# Blocks and fields that no body of OpenAI's chat has, to recognise a body on /invocations.
OWN_FIELDS = frozenset({
    "anthropic_version", "anthropic_beta", "context_management", "stop_sequences", "system",
})  # fmt: skip
OWN_BLOCKS = (
    "image", "document", "thinking", "redacted_thinking", "tool_use", "tool_result",
    "search_result",
)  # fmt: skip


class InputMessage(Turn):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]


class ToolDefinition(Body):
    """A function that the model may call; only those that the client runs are offered.

    A tool with `defer_loading` is hidden until a `tool_reference` in a result names it.
    `eager_input_streaming` has no effect, since arguments always stream as they come.
    """

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: Items[str] | None = None
    input_examples: Items[dict[str, Any]] | None = None


class ToolChoice(Body):
    """Whether the model calls tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = False


class Thinking(Body):
    """Whether the model thinks first. `budget_tokens` is checked and does not end the thoughts."""

    type: Literal["enabled", "adaptive", "disabled", "between_tools"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted", "updates"] | None = None

    @property
    def is_on(self) -> bool:
        """Whether thoughts are wanted."""
        return self.type != "disabled"


class OutputConfig(Body):
    """How much effort an answer takes, and its schema."""

    effort: str | None = None
    format: dict[str, Any] | None = None


class CountTokensRequest(Body):
    """A conversation whose tokens are counted."""

    messages: Items[InputMessage]
    model: str | None = Field(default=None, max_length=1000)
    system: str | Items[dict[str, Any]] | None = None
    tools: Items[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    context_management: ContextManagement | None = None
    container: Any = None
    mcp_servers: Any = None
    billing_policy: Any = None
    compaction: Any = None
    diagnostics: Any = None
    fallback_credit_token: Any = None
    fallbacks: Any = None
    inference_geo: str | None = None
    prefill: Any = None
    speed: str | None = None
    thread: Any = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def template_options(self) -> dict[str, Any]:
        """Variables for the chat template: no thoughts unless `thinking` asks for them.

        Raises InvalidParameter.
        """
        thinks = self.thinking is not None and self.thinking.is_on
        effort = self.output_config.effort if self.output_config else None
        options = read_options(effort, self.chat_template_kwargs)
        options |= {"enable_thinking": thinks, "thinking": thinks}
        return options | (self.chat_template_kwargs or {})


class MessagesRequest(CountTokensRequest):
    """A conversation to be continued. Sampling is on unless `temperature` is 0."""

    max_tokens: int
    stop_sequences: Items[str] | None = None
    stream: bool | None = False
    request_deadline: float | None = Field(default=None, ge=MIN_DEADLINE_S)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    anthropic_version: str | None = None
    anthropic_beta: Items[str] | None = None

    @property
    def sampling(self) -> SamplingFields:
        """How tokens are picked, under the names that all dialects share."""
        return SamplingFields(
            model=self.model,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k or None,
        )

    @property
    def answer_format(self) -> dict[str, Any] | None:
        """`output_config.format` in the form of OpenAI's `response_format`.

        `output_format` is its name in earlier versions of the API.
        """
        form = self.output_config.format if self.output_config else None
        form = form or self.output_format
        if form is None or form.get("type") != "json_schema":
            return form
        return {"type": "json_schema", "json_schema": form}


def check(request: MessagesRequest, limits: RequestLimits, vocabulary: int) -> None:
    """Check ranges. Raises InvalidParameter, or UnsupportedParameter for fields not offered."""
    check_count(request)
    check_sampling(request.sampling, limits, vocabulary)
    within(request.temperature, "temperature", 0, 2)
    stops = request.stop_sequences or []
    require(all(stops), "stop_sequences", "must not contain an empty string")
    most = limits.max_stops
    require(
        len(stops) <= most,
        "stop_sequences",
        f"supports up to {most} stop sequences (MAX_STOP_SEQUENCES). Given: {len(stops)}",
    )
    budget = request.thinking.budget_tokens if request.thinking else None
    require(
        budget is None or 1 <= budget < request.max_tokens,
        "thinking.budget_tokens",
        f"must be at least 1 and less than `max_tokens`, {request.max_tokens}. Given: {budget}",
    )


def check_count(request: CountTokensRequest) -> None:
    """Check what both routes read. Raises InvalidParameter or UnsupportedParameter."""
    refuse(request, NOT_OFFERED)
    require(bool(request.messages), "messages", "must not be empty")
    for index, message in enumerate(request.messages):
        require(message.content != [], f"messages[{index}].content", "must have a block")


def read_tool_use(request: CountTokensRequest) -> ToolUse:
    """Read `tools` and `tool_choice`. Raises InvalidParameter or UnsupportedParameter."""
    referenced = _referenced(request.messages)
    tools = [
        _function(tool, f"tools[{i}]")
        for i, tool in enumerate(request.tools or [])
        if not tool.defer_loading or tool.name in referenced
    ]
    choice = request.tool_choice or ToolChoice(type="auto")
    named = {"type": "function", "function": {"name": choice.name}}
    try:
        return read_tools(
            tools,
            named if choice.type == "tool" else CHOICES[choice.type],
            parallel=not choice.disable_parallel_tool_use,
        )
    except (InvalidParameter, UnsupportedParameter) as error:
        raise _in_own_words(error) from None


def is_messages_body(body: dict[str, Any]) -> bool:
    """Whether a body with `messages` is of this API, not of OpenAI's chat."""
    if not OWN_FIELDS.isdisjoint(body) or isinstance(body.get("thinking"), dict):
        return True
    tools, choice = body.get("tools"), body.get("tool_choice")
    if isinstance(tools, list) and any(isinstance(t, dict) and "input_schema" in t for t in tools):
        return True
    if isinstance(choice, dict) and choice.get("type") in ("auto", "any", "tool", "none"):
        return True
    messages = body.get("messages")
    return isinstance(messages, list) and any(map(_has_own_blocks, messages))


def _has_own_blocks(message: Any) -> bool:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return False
    return any(isinstance(block, dict) and block.get("type") in OWN_BLOCKS for block in content)


def _function(tool: ToolDefinition, where: str) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise UnsupportedParameter(
            f"`{where}.type`: tools of type {tool.type[:60]!r} are not supported by this server; "
            "`custom` tools with an `input_schema` are",
            field=f"{where}.type",
        )
    callers = tool.allowed_callers
    if callers is not None and "direct" not in callers:
        raise UnsupportedParameter(
            f"`{where}.allowed_callers` must have 'direct': nothing else calls tools here",
            field=f"{where}.allowed_callers",
        )
    if tool.input_schema is None:
        raise InvalidParameter(
            f"`{where}.input_schema` must be given", field=f"{where}.input_schema"
        )
    fields = {"description": _description(tool), "strict": tool.strict}
    described = {name: value for name, value in fields.items() if value is not None}
    function = {"name": tool.name, "parameters": tool.input_schema} | described
    return {"type": "function", "function": function}


def _description(tool: ToolDefinition) -> str | None:
    """Return the description, with the examples of the input, which templates do not know."""
    if not tool.input_examples:
        return tool.description
    examples = "\n".join(json.dumps(one, ensure_ascii=False) for one in tool.input_examples)
    return f"{tool.description or ''}\nExamples of arguments:\n{examples}".lstrip()


def _referenced(messages: list[InputMessage]) -> set[str]:
    """Return the names of the tools that earlier results refer to."""
    results = (block for message in messages for block in message.blocks)
    contents = (block.get("content") for block in results if block.get("type") == "tool_result")
    return {
        str(inner.get("tool_name"))
        for content in contents
        for inner in (content if isinstance(content, list) else [])
        if isinstance(inner, dict) and inner.get("type") == "tool_reference"
    }


def _in_own_words(error: ServingError) -> ServingError:
    """Name the fields of a tool as this API has them."""

    def rename(text: str) -> str:
        return text.replace(".function.parameters", ".input_schema").replace(".function", "")

    field = rename(error.field) if error.field else error.field
    return type(error)(rename(error.message), field=field)
