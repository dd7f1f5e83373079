"""Builds the grammar of a whole message: reasoning, then text, a response format, or tool calls.

Lark in llguidance's dialect (its docs/syntax.md). A marker that is a single token is written by its
id; text before a marker of several tokens needs a lazy rule, which ends at the first match.
"""

import json
import re
from typing import Any

from container.grammar import json_schema
from container.grammar.call_arguments import ArgumentRules
from container.grammar.shape import MessageShape, Tool
from container.grammar.spec import LARK_HEADER, answer_grammar, lark_string
from container.text import harmony
from container.text.addressed import AddressedFormat
from container.text.message_parser import Reasoning
from container.text.tool_calls.syntax import (
    ID,
    INDEX,
    ToolFormat,
)

ANY_TEXT = r"/(.|\n)*/"
_FIELDS = {ID: "/[A-Za-z0-9_-]{1,40}/", INDEX: "/[0-9]{1,3}/"}
_FIELD = re.compile(rf"([{ID}{INDEX}])")
# The blanks that a model may write after its reasoning.
GAP = r"(/[ \n]{1,4}/)?"


def message_grammar(shape: MessageShape, token_ids: dict[str, int]) -> str:
    """Build the grammar of a message; "" for no constraint. `token_ids` has the added tokens.

    Raises InvalidParameter for an answer or a tool whose grammar is not supported.
    """
    answer = "" if shape.answer is None else answer_grammar(shape.answer)
    is_framed = shape.reasoning is not None or shape.is_harmony or shape.addressed is not None
    if not shape.tools and not (answer and is_framed):
        return answer
    return _Builder(shape, token_ids).build(answer)


class _Builder:
    """Writes the rules of one grammar."""

    def __init__(self, shape: MessageShape, token_ids: dict[str, int]) -> None:
        self._shape = shape
        self._token_ids = token_ids
        self._marker = re.compile(
            "|".join(re.escape(text) for text in sorted(token_ids, key=len, reverse=True))
            or r"(?!)"
        )
        self._rules: list[str] = []

    def build(self, answer: str) -> str:
        shape = self._shape
        if shape.is_harmony:
            self._add_harmony()
        elif shape.addressed is not None:
            self._add_addressed(shape.addressed)
        else:
            body = self._body()
            thoughts = self._thoughts(shape.reasoning) if shape.reasoning else ""
            self._add("start", f"{thoughts} {body}")
        main = LARK_HEADER + "\n".join(self._rules) + "\n"
        return _combined(main, answer) if answer else main

    def _add_harmony(self) -> None:
        """Add rules for earlier messages in their channels, then a call or the final text."""
        shape = self._shape
        following = self._literal(harmony.END + harmony.START + "assistant")
        opened = [
            self._literal(f"{harmony.CHANNEL}{channel}{harmony.MESSAGE}")
            for channel in ("analysis", "commentary", "final")
        ]
        # Commentary before a call is content, which would break the answer's format.
        before = opened[:1] if shape.answer else opened[:2]
        earlier = " | ".join(f"{opening} {ANY_TEXT} {following}" for opening in before)
        answer = "@answer" if shape.answer else ANY_TEXT
        last = [] if shape.needs_call else [f"{opened[2]} {answer}"]
        if shape.tools:
            call = self._literal(f"{harmony.CHANNEL}commentary to=functions.")
            options = [
                f"{self._literal(tool.name + ' ' + harmony.CONSTRAIN + 'json' + harmony.MESSAGE)} "
                f"{_json(followed_parameters(tool, f'tools[{index}].function.parameters'))}"
                for index, tool in enumerate(shape.tools)
            ]
            last.append(f"{call} ({' | '.join(options)})")
        self._add("start", f"({earlier})* ({' | '.join(last)})")

    def _add_addressed(self, form: AddressedFormat) -> None:
        """Add rules for thoughts and text, each before another message, then calls or text."""
        shape = self._shape
        # Text before a call is content, which would break the answer's format.
        before = form.selves[:1] + (() if shape.answer else form.users[:1])
        earlier = " | ".join(
            f"{self._literal(name + form.header_end)} {self._until(f'earlier{i}', form.following)}"
            for i, name in enumerate(before)
        )
        text = self._literal(form.users[0] + form.header_end)
        last = [] if shape.needs_call else [f"{text} {'@answer' if shape.answer else ANY_TEXT}"]
        if shape.tools:
            self._add("call", " | ".join(self._addressed_calls(form)))
            several = f"({self._literal(form.following)} call)*" if shape.allows_several else ""
            last.append(f"call {several}")
        first = self._literal(form.first) if form.first else ""
        self._add("start", f"{first} {f'({earlier})*' if earlier else ''} ({' | '.join(last)})")

    def _addressed_calls(self, form: AddressedFormat) -> list[str]:
        """Write a message to each tool."""
        rules = ArgumentRules(form.calls, self._add, self._literal, self._until)
        ending = form.calls.call_end + form.calls.end
        options = []
        for index, tool in enumerate(self._shape.tools):
            schema = followed_parameters(tool, f"tools[{index}].function.parameters")
            head = tool.name + form.header_end
            if form.repeats_name:
                head += form.calls.begin + form.calls.call_begin + tool.name + form.calls.name_end
            closing = self._literal(ending) if ending else ""
            options.append(f"{self._literal(head)} {rules.write(schema, f'a{index}')} {closing}")
        return options

    def _add(self, rule: str, text: str) -> None:
        self._rules.append(f"{rule}: {text}")

    def _thoughts(self, reasoning: Reasoning) -> str:
        """Write the reasoning before the body; the prompt may have opened it already.

        All rules that can match at a position see the same text, and the longest match wins; so
        reasoning must differ from text by a token, or be one lazy rule with both of its marks.
        """
        marks = (reasoning.open, reasoning.close)
        has_tokens = [self._marker.match(mark) is not None for mark in marks]
        if self._shape.starts_in_reasoning:
            return self._until("thoughts", reasoning.close)
        if has_tokens[0]:
            inside = self._until("thoughts", reasoning.close)
            return f"({self._literal(reasoning.open)} {inside})?"
        if has_tokens[1]:
            return f"({ANY_TEXT} {self._literal(reasoning.close)})?"
        opened = rf"/[ \n]{{0,4}}{re.escape(reasoning.open)}(.|\n)*/"
        self._add("thoughts[lazy]", f"{opened} {lark_string(reasoning.close)}")
        return "thoughts?"

    def _body(self) -> str:
        shape = self._shape
        gap = GAP if shape.reasoning else ""
        if not shape.tools:
            return f"{gap} @answer"
        form = shape.tool_format
        assert form is not None
        if shape.needs_call:
            return f"{gap} {self._calls(form)}"
        if shape.answer:
            return f"{gap} ({self._calls(form)} | @answer)"
        if form.only_at_start:
            blanks = r"[ \n]{0,4}" if shape.reasoning else ""
            opening = blanks + self._opening_of_calls(form)
            self._add("FREE_TEXT", rf"/(.|\n)+/ & ~/{opening}(.|\n)*/")
            return f"({self._calls(form)} | FREE_TEXT)?"
        calls = self._calls(form, after=form.trigger)
        self._add("with_calls", f"{self._until('text', form.trigger)} {calls}")
        return f"(with_calls | {ANY_TEXT})"

    def _opening_of_calls(self, form: ToolFormat) -> str:
        """Write a regex for the beginnings that text must not have, since they begin calls."""
        opening = re.escape(form.begin + form.call_begin).replace("/", r"\/")
        if form.call_begin:
            return opening
        names = "|".join(re.escape(tool.name) for tool in self._shape.tools)
        return rf"{opening}([a-z_]|({names})\()"

    def _until(self, name: str, mark: str) -> str:
        """Write any text up to and including the first occurrence of a mark.

        Text before the first token of a mark is part of the text before the mark.
        """
        token = self._marker.search(mark)
        if token is not None:
            return f"{ANY_TEXT} {self._literal(mark[token.start() :])}"
        self._add(f"{name}[lazy]", f"{ANY_TEXT} {lark_string(mark)}")
        return name

    def _calls(self, form: ToolFormat, after: str = "") -> str:
        """Write all calls of a message, without the prefix `after`, which was matched already."""
        self._add_tools(form)
        opening = self._literal((form.begin + form.call_begin).removeprefix(after))
        if form.only_at_start and self._shape.reasoning and not self._shape.needs_call:
            # One terminal with the blanks before it, so that the text rule cannot match those.
            opening = rf"/[ \n]{{0,4}}{re.escape(form.begin + form.call_begin)}/"
        more = ""
        if self._shape.allows_several:
            following = self._literal(form.call_end + form.separator + form.call_begin)
            more = f"({following} tool)*"
        closing = self._literal(form.call_end + form.end)
        if form.end.strip() in self._token_ids:  # it may end the message, like an EOS token
            closing = f"{self._literal(form.call_end)} ({self._literal(form.end)})?"
        return f"{opening} tool {more} {closing}"

    def _add_tools(self, form: ToolFormat) -> None:
        options = []
        rules = ArgumentRules(form, self._add, self._literal, self._until)
        for index, tool in enumerate(self._shape.tools):
            schema = followed_parameters(tool, f"tools[{index}].function.parameters")
            head = self._literal(tool.name + form.name_end)
            options.append(f"{head} {rules.write(schema, f'a{index}')}")
        self._add("tool", " | ".join(options))

    def _literal(self, text: str) -> str:
        """Write a fixed text, with its added tokens as ids and its fields as patterns."""
        pieces = [piece for piece in _FIELD.split(text) if piece]
        return " ".join(_FIELDS.get(piece) or self._fixed(piece) for piece in pieces)

    def _fixed(self, text: str) -> str:
        parts = []
        position = 0
        for match in self._marker.finditer(text):
            if match.start() > position:
                parts.append(lark_string(text[position : match.start()]))
            parts.append(f"<[{self._token_ids[match.group()]}]>")
            position = match.end()
        if position < len(text):
            parts.append(lark_string(text[position:]))
        return " ".join(parts)


def followed_parameters(tool: Tool, field: str) -> dict[str, Any]:
    """Return a tool's parameter schema as the grammar enforces it. Raises InvalidParameter.

    Unsupported keywords are rejected for a strict tool only: applications share their tools'
    schemas with other code, and the model sees the whole schema in its prompt.
    """
    schema = json_schema.followed(
        tool.parameters, field, is_strict=tool.is_strict, is_lenient=not tool.is_strict
    )
    return json_schema.with_whitespace(schema)


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps(schema)}"


def _combined(main: str, answer: str) -> str:
    """Combine two grammars: the rule @answer of `main` refers to `answer`."""
    inner: dict[str, Any] = {"lark_grammar": answer}
    if answer.startswith("{"):
        inner = json.loads(answer)["grammars"][0]
    parts = [{"name": "message", "lark_grammar": main}, inner | {"name": "answer"}]
    return json.dumps({"grammars": parts})
