"""Prompts of chats: messages and tools, fitted into the model's chat template and rendered."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from container.errors import InvalidParameter, TemplateFailed
from container.frontend.chat.tools import NO_TOOLS, ToolUse
from container.frontend.generation.prompts import Prompts
from container.grammar.forms import Answer
from container.images.sources import ImageSource
from container.text.history.arguments import as_object
from container.text.history.content import Message, around, is_empty, parts_of
from container.text.history.continuation import continued, written
from container.text.history.fitting import HistoryFitter
from container.text.history.remedies import as_json
from container.text.message_style import MessageStyle, style_of
from container.text.tool_calls.syntax import ToolFormat
from container.text.tool_calls.writer import write_calls
from container.text.tool_descriptions.fitting import ToolFitter
from container.text.tool_formats import FALLBACK

# For templates that know no tools. TGI puts such a text at the end of the last message.
TOOL_PROMPT = (
    "You can call the functions above. To call one, answer with nothing but a JSON object: "
    '{"name": the function\'s name, "parameters": an object with its arguments}.'
)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """The prompt of a chat. `answer` is the form of a message without calls.

    `images` are those of the messages' parts {"type": "image"}, in their order.
    `continues` leaves the last message open; None does so for one of the assistant's, as in TGI.
    `takes_plain`: a model without a template gets the last message of the user as its prompt.
    `add_special_tokens` None leaves them to the template; `truncate` keeps the last tokens.
    """

    messages: list[Message]
    tools: ToolUse = NO_TOOLS
    tool_prompt: str | None = None
    answer: Answer | None = None
    template_options: dict[str, Any] = field(default_factory=dict)
    continues: bool | None = None
    opens_reply: bool = True
    takes_plain: bool = False
    images: list[ImageSource] = field(default_factory=list)
    add_special_tokens: bool | None = None
    truncate: int | None = None


class ChatPrompts:
    """Renders chats with the served model's template."""

    def __init__(
        self,
        prompts: Prompts,
        tool_format: str | None = None,
        system_prompt: str | None = None,
    ) -> None:
        """`tool_format` is the format of calls where the template does not show it.

        `system_prompt` comes first where a conversation has none.
        """
        self._prompts = prompts
        self._tool_format = tool_format
        self._system_prompt = system_prompt
        self._history: HistoryFitter | None = None

    @property
    def style(self) -> MessageStyle:
        """How the served model writes. Raises Unavailable before it is loaded."""
        tokenizer = self._prompts.tokenizer
        render = tokenizer.render_probe if tokenizer.has_chat_template else None
        return style_of(tokenizer.chat_template, self._tool_format, render, tokenizer.added_names)

    def is_plain(self, chat_prompt: ChatPrompt) -> bool:
        """Whether the prompt is the last message of the user, without a template."""
        return chat_prompt.takes_plain and not self._prompts.tokenizer.has_chat_template

    def render(self, chat_prompt: ChatPrompt) -> tuple[str, str]:
        """Render the prompt; return it, and the part of the reply that it ends with.

        Raises TemplateFailed or InvalidParameter.
        """
        self._prompts.check_images(chat_prompt.images)
        if self.is_plain(chat_prompt):
            return _last_of_user(chat_prompt.messages), ""
        style, described = self.style, chat_prompt.tools.described
        continues = _continues(chat_prompt)
        messages = self._with_system(chat_prompt.messages)
        if not continues and _ends_empty(messages):
            messages = messages[:-1]
        messages, takes_answer = self._fitted(
            messages, has_tools=bool(described), continues=continues
        )
        if described:
            placed = self._tool_fitter.fit(messages, described) if self._tool_fitter else None
            if placed is None:
                prompt = chat_prompt.tool_prompt or _tool_prompt(style)
                placed = _with_tools(messages, described, prompt), []
            messages, described = placed
        render = partial(
            self._render_messages, tools=described, options=chat_prompt.template_options
        )
        if not continues:
            return render(messages, continues=False, opens_reply=chat_prompt.opens_reply), ""
        if messages[-1]["role"] != "assistant":
            return render(messages, continues=True), ""
        return (
            continued(render, messages, style.reasoning, takes_answer=takes_answer),
            written(messages[-1], style.reasoning),
        )

    def _fitted(
        self, messages: list[Message], *, has_tools: bool, continues: bool
    ) -> tuple[list[Message], bool]:
        """Fit messages; return them, and whether the template takes the answer at their end."""
        try:
            return self._fitter().fit(messages, has_tools=has_tools), True
        except TemplateFailed:
            if not continues or len(messages) == 1 or messages[-1]["role"] != "assistant":
                raise
        return [*self._fitter().fit(messages[:-1], has_tools=has_tools), messages[-1]], False

    def _fitter(self) -> HistoryFitter:
        if self._history is None:

            def render(messages: list[Message], tools: Sequence[dict[str, Any]]) -> str:
                opens_reply = messages[-1]["role"] != "assistant"
                return self._render_messages(
                    messages, tools=tools, continues=False, opens_reply=opens_reply
                )

            style = self.style
            self._history = HistoryFitter(
                render,
                takes_tools=style.takes_tools,
                takes_calls=style.takes_tools or style.writes_calls,
                write=partial(_write_calls, style.tool_format),
            )
        return self._history

    @cached_property
    def _tool_fitter(self) -> ToolFitter | None:
        """Fits tools into the template; None if it takes none."""
        placement = self.style.tool_placement
        if placement is None:
            return None
        return ToolFitter(self._prompts.tokenizer.render_probe, placement)

    def _render_messages(self, messages: list[Message], **arguments: Any) -> str:
        return self._prompts.tokenizer.render_chat(self._in_parts(messages), **arguments)

    def _with_system(self, messages: list[Message]) -> list[Message]:
        has_own = any(message["role"] in ("system", "developer") for message in messages)
        if self._system_prompt is None or has_own:
            return messages
        return [{"role": "system", "content": self._system_prompt}, *messages]

    def _in_parts(self, messages: list[Message]) -> list[Message]:
        """Convert contents to the form that the template of a vision-language model reads."""
        prompts = self._prompts
        if not prompts.is_multimodal:
            return messages
        if not prompts.tokenizer.takes_parts:
            return [
                message | {"content": _as_text(message, prompts.image_token)}
                if isinstance(message["content"], list)
                else message
                for message in messages
            ]
        if prompts.tokenizer.takes_strings:
            return messages
        return [message | {"content": parts_of(message["content"])} for message in messages]


def _last_of_user(messages: list[Message]) -> str:
    texts = [
        _as_text(message, "")
        for message in messages
        if message["role"] not in ("assistant", "system", "developer", "tool")
    ]
    if not texts:
        raise InvalidParameter("`messages` must have a message of the user", field="messages")
    return texts[-1]


def _continues(chat_prompt: ChatPrompt) -> bool:
    """Whether the last message stays open. Raises InvalidParameter if it cannot."""
    last = chat_prompt.messages[-1]
    has_calls = bool(last.get("tool_calls"))
    if chat_prompt.continues and has_calls:
        raise InvalidParameter(
            "`continue_final_message` cannot continue a message with `tool_calls`; add their "
            "results, or leave the field out for another message",
            field="continue_final_message",
        )
    if chat_prompt.continues is None:
        return last["role"] == "assistant" and not has_calls
    return chat_prompt.continues


def _tool_prompt(style: MessageStyle) -> str:
    """Return the prompt that requests calls in the template's format, else in FALLBACK."""
    form = style.tool_format
    if form is None or form == FALLBACK:
        return TOOL_PROMPT
    example = write_calls(form, [("NAME", {"ARGUMENT": "VALUE"})])
    return f"You can call the functions above. To call one, answer with nothing but:\n{example}"


def _write_calls(form: ToolFormat | None, calls: list[dict[str, Any]]) -> str:
    """Write earlier calls as the model does."""
    if form is None or form == FALLBACK:
        return as_json(calls)
    functions = [call["function"] for call in calls]
    return write_calls(
        form, [(function["name"], as_object(function["arguments"])) for function in functions]
    )


def _ends_empty(messages: list[Message]) -> bool:
    """Whether the last message is an empty answer, and not the only message."""
    last = messages[-1]
    return len(messages) > 1 and last["role"] == "assistant" and is_empty(last)


def _with_tools(
    messages: list[Message], described: list[dict[str, Any]], prompt: str
) -> list[Message]:
    """Describe tools at the end of the last message that is not an answer to continue."""
    described_tools = json.dumps(described, ensure_ascii=False)
    index = max(
        (index for index, message in enumerate(messages) if message["role"] != "assistant"),
        default=None,
    )
    if index is None:
        messages, index = [{"role": "user", "content": ""}, *messages], 0
    content = around("", messages[index]["content"], f"\n---\n{described_tools}\n{prompt}")
    return [*messages[:index], messages[index] | {"content": content}, *messages[index + 1 :]]


def _as_text(message: Message, image_token: str) -> str:
    """Return the content as one text, with a token for each image."""
    parts = parts_of(message["content"])
    return "".join(image_token if part["type"] == "image" else part["text"] for part in parts)
