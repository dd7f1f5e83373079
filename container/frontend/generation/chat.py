"""A conversation that the model continues: from messages and tools to a reply and its parts.

Between the service, which knows prompts, and the dialects: what both of OpenAI's APIs share.
"""

import json
import secrets
from dataclasses import dataclass, field, replace
from typing import Any

from container.errors import InvalidParameter
from container.frontend.generation.completion import Completion, TextEvent
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.running_request import RunningRequest
from container.frontend.generation.service import FieldNames, Prompt, Service, TextRules
from container.frontend.generation.tools import NO_TOOLS, ToolMode, ToolUse
from container.grammar.forms import Answer
from container.grammar.shape import MessageShape, encode_shape
from container.images.sources import ImageSource
from container.messages.engine import FinishReason, SamplingParams
from container.text.message_parser import Delta, DeltaKind, Parser
from container.text.message_style import MessageStyle, style_of
from container.text.tool_calls.writer import write_calls
from container.text.tool_formats import FALLBACK

Message = dict[str, Any]

# For templates that know no tools. TGI puts such a text at the end of the last message.
TOOL_PROMPT = (
    "You can call the functions above. To call one, answer with nothing but a JSON object: "
    '{"name": the function\'s name, "parameters": an object with its arguments}.'
)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """What the model is asked for. `answer` is the form of a message without calls.

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


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A rendered and encoded chat, the room for its reply and the grammar of that.

    `schemas` are those of its tools' arguments, of which one is called if it `must_call`.
    """

    text: str
    prompt: Prompt
    max_new_tokens: int
    grammar: str
    schemas: dict[str, Any]
    must_call: bool = False


@dataclass(slots=True)
class Call:
    """A tool call of a reply."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class MessageBuilder:
    """All that one sequence of a reply has said so far."""

    reasoning: str = ""
    content: str = ""
    reasoning_tokens: int = 0
    calls: list[Call] = field(default_factory=list)

    def take(self, delta: Delta) -> None:
        """Add a delta."""
        match delta.kind:
            case DeltaKind.REASONING:
                self.reasoning += delta.text
            case DeltaKind.CONTENT:
                self.content += delta.text
            case DeltaKind.CALL:
                self.calls.append(Call(f"call_{secrets.token_hex(12)}", delta.text))
            case DeltaKind.ARGUMENTS:
                self.calls[delta.call_index].arguments += delta.text


@dataclass(slots=True)
class Reply:
    """A started reply: its running request, and the parser of each sequence."""

    running: RunningRequest
    parsers: list[Parser]
    builders: list[MessageBuilder]

    def take(self, event: TextEvent) -> list[Delta]:
        """Turn an event into deltas and remember them."""
        parser, builder = self.parsers[event.seq_index], self.builders[event.seq_index]
        was_reasoning = parser.in_reasoning
        deltas = parser.feed(event.text)
        if (was_reasoning or parser.in_reasoning) and not event.is_cut:
            builder.reasoning_tokens += 1
        if event.finish_reason is not None:
            deltas += parser.finish()
        for delta in deltas:
            builder.take(delta)
        return deltas

    def take_whole(self, completion: Completion) -> MessageBuilder:
        """Parse a completion that has ended."""
        for event in in_pieces(completion.all_events):
            self.take(event)
        return self.builders[completion.seq_index]

    def calls_tools(self, seq_index: int, reason: FinishReason | None) -> bool:
        """Whether a sequence has ended with its calls, uncut."""
        has_ended = reason in (FinishReason.END_TOKEN, FinishReason.STOP)
        return has_ended and bool(self.builders[seq_index].calls)


class Conversations:
    """Continues conversations with the served model."""

    def __init__(
        self,
        service: Service,
        tool_format: str | None = None,
        system_prompt: str | None = None,
    ) -> None:
        """`tool_format` is the format of calls, where the template does not tell it rightly.

        `system_prompt` comes first where a conversation has none.
        """
        self._service = service
        self._tool_format = tool_format
        self._system_prompt = system_prompt

    @property
    def style(self) -> MessageStyle:
        """How the served model writes. Raises Unavailable before it is loaded."""
        tokenizer = self._service.tokenizer
        render = tokenizer.render_probe if tokenizer.has_chat_template else None
        return style_of(tokenizer.chat_template, self._tool_format, render)

    def render(self, chat_prompt: ChatPrompt) -> str:
        """Make the prompt. Raises TemplateFailed."""
        self._service.check_images(chat_prompt.images)
        if self._is_plain(chat_prompt):
            return _last_of_user(chat_prompt.messages)
        style = self.style
        messages, described = self._with_system(chat_prompt.messages), chat_prompt.tools.described
        if not style.knows_developer:
            messages = [_as_system(message) for message in messages]
        if not style.takes_tools:
            if not style.writes_calls:
                messages = [_without_calls(message) for message in messages]
            if described:
                prompt = chat_prompt.tool_prompt or _tool_prompt(style)
                messages = _with_tools(messages, described, prompt)
            described = []
        messages = self._in_parts(messages, has_images=bool(chat_prompt.images))
        return self._service.tokenizer.render_chat(
            messages,
            tools=described,
            options=chat_prompt.template_options,
            continues=chat_prompt.continues,
            opens_reply=chat_prompt.opens_reply,
        )

    def prepare(
        self, chat_prompt: ChatPrompt, names: FieldNames, max_new_tokens: int | None
    ) -> PreparedChat:
        """Render and encode a chat. Raises the request's first error."""
        service = self._service
        text = self.render(chat_prompt)
        adds = chat_prompt.add_special_tokens
        prompt = service.prompt(
            text,
            names,
            chat_prompt.images,
            # A template writes the special tokens itself.
            add_special_tokens=self._is_plain(chat_prompt) if adds is None else adds,
            truncate=chat_prompt.truncate,
        )
        room = service.room_for(len(prompt.ids), max_new_tokens, names)
        grammar = service.offloads.grammars(encode_shape, self._shape(chat_prompt, text))
        must_call = chat_prompt.tools.mode is ToolMode.REQUIRED
        return PreparedChat(text, prompt, room, grammar, chat_prompt.tools.schemas, must_call)

    def start(
        self,
        chat: PreparedChat,
        params: SamplingParams,
        text: TextRules,
        context: RequestContext,
    ) -> Reply:
        """Submit a prepared chat and wait for its first token. Raises the engine's refusal."""
        style = self.style
        text = replace(text, shown=style.markers(with_tools=bool(chat.schemas)))
        running = self._service.start(chat.prompt, params, text, context)
        parsers = [
            style.parser(chat.text, chat.schemas, must_call=chat.must_call)
            for _ in running.completions
        ]
        return Reply(running, parsers, [MessageBuilder() for _ in running.completions])

    def _is_plain(self, chat_prompt: ChatPrompt) -> bool:
        return chat_prompt.takes_plain and not self._service.tokenizer.has_chat_template

    def _with_system(self, messages: list[Message]) -> list[Message]:
        has_own = any(message["role"] in ("system", "developer") for message in messages)
        if self._system_prompt is None or has_own:
            return messages
        return [{"role": "system", "content": self._system_prompt}, *messages]

    def _in_parts(self, messages: list[Message], *, has_images: bool) -> list[Message]:
        """Give contents the form that the template of a vision-language model reads."""
        service = self._service
        if not service.is_multimodal:
            return messages
        if not service.tokenizer.takes_parts:
            token = service.image_token if has_images else ""
            return [message | {"content": _joined(message, token)} for message in messages]
        if service.tokenizer.takes_strings:
            return messages
        return [message | {"content": _parts(message)} for message in messages]

    def _shape(self, chat_prompt: ChatPrompt, prompt: str) -> MessageShape:
        style, tools = self.style, chat_prompt.tools
        must_call = tools.mode is ToolMode.REQUIRED
        tool_format = style.format_of_calls(must_call=must_call)
        is_open = tool_format is None and not style.is_harmony  # calls in an unknown format
        return MessageShape(
            reasoning=style.reasoning,
            starts_in_reasoning=style.starts_in_reasoning(prompt),
            tool_format=tool_format,
            tools=() if is_open else tools.tools,
            needs_call=must_call,
            allows_several=tools.allows_several,
            answer=chat_prompt.answer,
            is_harmony=style.is_harmony,
        )


def _last_of_user(messages: list[Message]) -> str:
    texts = [
        _joined(message, "")
        for message in messages
        if message["role"] not in ("assistant", "system", "developer", "tool")
    ]
    if not texts:
        raise InvalidParameter("`messages` has none of the user", field="messages")
    return texts[-1]


def _as_system(message: Message) -> Message:
    return message | {"role": "system"} if message["role"] == "developer" else message


def _without_calls(message: Message) -> Message:
    """Calls and results as text, for templates that know neither."""
    if message["role"] == "tool":
        return {"role": "user", "content": _around("The function's result: ", message, "")}
    calls = message.get("tool_calls")
    if not calls:
        return message
    described_calls = "; ".join(
        json.dumps({"name": call["function"]["name"], "parameters": call["function"]["arguments"]})
        for call in calls
    )
    return {"role": message["role"], "content": message["content"] or described_calls}


def _tool_prompt(style: MessageStyle) -> str:
    """Ask for calls in the format that the template writes, else in the general one."""
    form = style.tool_format
    if form is None or form == FALLBACK:
        return TOOL_PROMPT
    example = write_calls(form, [("NAME", {"ARGUMENT": "VALUE"})])
    return f"You can call the functions above. To call one, answer with nothing but:\n{example}"


def _with_tools(
    messages: list[Message], described: list[dict[str, Any]], prompt: str
) -> list[Message]:
    last = messages[-1]
    content = _around("", last, f"\n---\n{json.dumps(described)}\n{prompt}")
    return [*messages[:-1], last | {"content": content}]


def _parts(message: Message) -> list[dict[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _joined(message: Message, image_token: str) -> str:
    """The content as one text, for what knows no parts."""
    parts = _parts(message)
    return "".join(image_token if part["type"] == "image" else part["text"] for part in parts)


def _around(before: str, message: Message, after: str) -> str | list[dict[str, Any]]:
    """The content with a text before and after it."""
    content = message["content"]
    if not isinstance(content, list):
        return f"{before}{content}{after}"
    texts = [{"type": "text", "text": text} for text in (before, after)]
    return [texts[0], *content, texts[1]]
