"""A conversation that the model continues: from messages and tools to a reply and its parts.

The APIs of chats share this layer above the service, which knows prompts only.
"""

import secrets
from dataclasses import dataclass, field, replace
from typing import Any

from container.frontend.chat.chat_prompts import ChatPrompt, ChatPrompts
from container.frontend.chat.tools import ToolMode
from container.frontend.generation.completion import Completion, TextEvent
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.prompts import FieldNames, Prompt
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.running_group import RunningGroup
from container.frontend.generation.running_request import RunningRequest
from container.frontend.generation.service import Service, TextRules
from container.grammar.shape import MessageShape, encode_shape
from container.messages.engine import FinishReason, SamplingParams
from container.text.delta import Delta, DeltaKind, Parser
from container.text.message_style import MessageStyle


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A rendered and encoded chat, the longest reply to it and the grammar of the reply.

    `schemas` are those of its tools' arguments; the reply calls a tool if it `must_call`. `answer`
    is the part of the reply in the prompt.
    """

    text: str
    prompt: Prompt
    max_new_tokens: int
    grammar: str
    schemas: dict[str, Any]
    must_call: bool = False
    answer: str = ""


@dataclass(slots=True)
class Call:
    """A tool call of a reply."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class MessageBuilder:
    """Collects the message of one sequence of a reply."""

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
        """Parse an event into deltas, and add them to the sequence's message."""
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
        """Whether a sequence has ended with complete tool calls."""
        has_ended = reason in (FinishReason.END_TOKEN, FinishReason.STOP)
        return has_ended and bool(self.builders[seq_index].calls)


class Conversations:
    """Continues conversations with the served model."""

    def __init__(self, service: Service, prompts: ChatPrompts) -> None:
        self._service = service
        self._prompts = prompts

    @property
    def style(self) -> MessageStyle:
        """How the served model writes. Raises Unavailable before it is loaded."""
        return self._prompts.style

    def render(self, chat_prompt: ChatPrompt) -> str:
        """Render the prompt. Raises TemplateFailed or InvalidParameter."""
        return self._prompts.render(chat_prompt)[0]

    def prepare(
        self, chat_prompt: ChatPrompt, names: FieldNames, max_new_tokens: int | None
    ) -> PreparedChat:
        """Render and encode a chat. Raises the request's first error."""
        service = self._service
        if chat_prompt.truncate is None and not self._prompts.is_plain(chat_prompt):
            service.prompts.check_num_messages(len(chat_prompt.messages), names)
        text, answer = self._prompts.render(chat_prompt)
        adds = chat_prompt.add_special_tokens
        prompt = service.prompts.prompt(
            text,
            names,
            chat_prompt.images,
            # A template writes the special tokens itself.
            add_special_tokens=self._prompts.is_plain(chat_prompt) if adds is None else adds,
            truncate=chat_prompt.truncate,
        )
        new_tokens = service.prompts.limit_new_tokens(len(prompt.ids), max_new_tokens, names)
        grammar = service.offloads.grammars(encode_shape, self._shape(chat_prompt, text, answer))
        must_call = chat_prompt.tools.mode is ToolMode.REQUIRED
        return PreparedChat(
            text, prompt, new_tokens, grammar, chat_prompt.tools.schemas, must_call, answer
        )

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
        return self._reply(chat, self._service.start(chat.prompt, params, text, context))

    def start_group(
        self,
        chats: list[PreparedChat],
        params: list[SamplingParams],
        text: TextRules,
        context: RequestContext,
    ) -> tuple[RunningGroup, list[Reply]]:
        """Submit prepared chats with the same tools at once, and wait for their first tokens."""
        style = self.style
        text = replace(text, shown=style.markers(with_tools=bool(chats[0].schemas)))
        prompts = [chat.prompt for chat in chats]
        group = self._service.start_group(prompts, params, text, context)
        return group, list(map(self._reply, chats, group.requests))

    def _reply(self, chat: PreparedChat, running: RunningRequest) -> Reply:
        parsers = [
            self.style.parser(chat.text, chat.schemas, chat.answer, must_call=chat.must_call)
            for _ in running.completions
        ]
        return Reply(running, parsers, [MessageBuilder() for _ in running.completions])

    def _shape(self, chat_prompt: ChatPrompt, prompt: str, answer: str) -> MessageShape:
        style, tools = self.style, chat_prompt.tools
        must_call = tools.mode is ToolMode.REQUIRED
        tool_format = style.format_of_calls(must_call=must_call)
        # Calls in an unknown format are not constrained.
        is_open = tool_format is None and not style.is_harmony
        return MessageShape(
            reasoning=style.reasoning,
            starts_in_reasoning=style.starts_in_reasoning(prompt, answer),
            tool_format=tool_format,
            tools=() if is_open else tools.tools,
            needs_call=must_call,
            allows_several=tools.allows_several,
            answer=chat_prompt.answer,
            is_harmony=style.is_harmony,
            addressed=style.addressed,
        )
