"""The harmony format of gpt-oss: messages in channels, each with a header.

    <|channel|>analysis<|message|> thoughts <|end|><|start|>assistant
    <|channel|>commentary to=functions.NAME <|constrain|>json<|message|> arguments <|call|>
    <|channel|>final<|message|> text <|return|>
Source: OpenAI's description of the format (github.com/openai/harmony). The marks are special
tokens; the parser's input has them spelled out.
"""

import re

from container.text.message_parser import Delta, DeltaKind
from container.text.stop_strings import partial_match_len

START, END, MESSAGE = "<|start|>", "<|end|>", "<|message|>"
CHANNEL, CONSTRAIN, CALL = "<|channel|>", "<|constrain|>", "<|call|>"
MARKERS = START + END + MESSAGE + CHANNEL + CONSTRAIN + CALL

NAMES = ("openai", "gpt-oss")  # of vLLM's and SGLang's parser of it

_RECIPIENT = re.compile(r"to=functions\.([\w.-]+)")
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
# Marks that end a message.
_ENDS = (END, CALL, START)


def is_harmony(template: str) -> bool:
    """Whether a chat template writes this format."""
    return all(mark in template for mark in (START, CHANNEL, MESSAGE))


class HarmonyParser:
    """Turns one completion's text into deltas; implements Parser."""

    def __init__(self) -> None:
        self._text = ""
        self._kind: DeltaKind | None = None  # None while a header is read
        self._num_calls = 0

    @property
    def in_reasoning(self) -> bool:
        """Whether the text so far ends inside the analysis channel."""
        return self._kind is DeltaKind.REASONING

    def feed(self, text: str) -> list[Delta]:
        """Parse more text."""
        self._text += text
        deltas: list[Delta] = []
        while self._step(deltas):
            pass
        return deltas

    def finish(self) -> list[Delta]:
        """Return the deltas of the buffered text; an incomplete header yields none."""
        deltas: list[Delta] = []
        if self._kind is not None:
            self._emit(deltas, self._text)
        self._text = ""
        return deltas

    def _step(self, deltas: list[Delta]) -> bool:
        return self._read_header(deltas) if self._kind is None else self._read_body(deltas)

    def _read_header(self, deltas: list[Delta]) -> bool:
        header, mark, rest = self._text.partition(MESSAGE)
        if not mark:
            return False
        self._text = rest
        recipient = _RECIPIENT.search(header)
        channels = _CHANNEL.findall(header)
        if recipient is not None:
            self._kind = DeltaKind.ARGUMENTS
            self._num_calls += 1
            deltas.append(Delta(DeltaKind.CALL, recipient[1], self._num_calls - 1))
        elif channels and channels[-1] == "analysis":
            self._kind = DeltaKind.REASONING
        else:
            self._kind = DeltaKind.CONTENT
        return True

    def _read_body(self, deltas: list[Delta]) -> bool:
        ends = [position for mark in _ENDS if (position := self._text.find(mark)) >= 0]
        if ends:
            self._emit(deltas, self._text[: min(ends)])
            self._text = self._text[min(ends) :]
            self._kind = None
            return True
        num_certain = len(self._text) - partial_match_len(self._text, _ENDS)
        self._emit(deltas, self._text[:num_certain])
        self._text = self._text[num_certain:]
        return False

    def _emit(self, deltas: list[Delta], text: str) -> None:
        assert self._kind is not None
        if text:
            is_call = self._kind is DeltaKind.ARGUMENTS
            deltas.append(Delta(self._kind, text, self._num_calls - 1 if is_call else -1))
