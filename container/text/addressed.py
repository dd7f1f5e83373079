"""Messages that each name their recipient: the user, the model itself, or a function it calls.

    first RECIPIENT header_end BODY following RECIPIENT header_end BODY ...
Muse writes ` to=self<|message|> thoughts <|eom|><|start|>assistant to=user<|message|> text`, and
Functionary 3.2 `all\\ntext>>>get_weather\\n{"city": "Oslo"}`. Sources: the chat templates that the
families publish with their weights.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from container.text.delta import Delta, DeltaKind, SteppedParser
from container.text.stop_strings import partial_match_len
from container.text.tool_calls.calls_parser import CallsParser
from container.text.tool_calls.syntax import ArgumentStyle, PairMarks, ToolFormat


@dataclass(frozen=True, slots=True)
class AddressedFormat:
    """The fixed texts around messages and their recipients.

    `calls` is the form of a message to a function; its body `repeats_name` or begins with the
    arguments. `header` is a regex for a header, its recipient the group `name`. `ends` are marks
    that end a message; without them only a header with a known recipient does. `users` and `selves`
    are the recipients of content and of thoughts; models write the first of each.
    """

    calls: ToolFormat
    first: str
    following: str
    header_end: str
    header: str
    users: tuple[str, ...]
    selves: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    repeats_name: bool = False

    @property
    def name(self) -> str:
        """The format's name."""
        return self.calls.name

    @property
    def markers(self) -> str:
        """All fixed texts joined, to find the special tokens among them."""
        texts = [self.first, self.following, self.header_end, *self.ends, self.calls.markers]
        return "".join(texts)

    def ends_of(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the marks that end a message, where these functions may be called."""
        if self.ends:
            return self.ends
        recipients = (*self.users, *self.selves, *names)
        return tuple(f"{self.following}{name}{self.header_end}" for name in recipients)


MUSE = AddressedFormat(
    ToolFormat(
        "muse_glimmer",
        trigger="<atem:function_calls>",
        begin="<atem:function_calls>\n",
        call_begin='<atem:invoke name="',
        name_end='">\n',
        call_end="</atem:invoke>\n",
        end="</atem:function_calls>",
        arguments=ArgumentStyle.XML,
        pairs=PairMarks('<atem:parameter name="', ('">',), "</atem:parameter>\n"),
    ),
    first=" to=",
    following="<|eom|><|start|>assistant to=",
    header_end="<|message|>",
    header=r"(?s:.*)to=(?P<name>[\w.-]+)\s*",
    users=("user", "commentary"),
    selves=("self",),
    ends=("<|eom|>", "<|eot|>", "<|start|>"),
    repeats_name=True,
)
FUNCTIONARY = AddressedFormat(
    ToolFormat("functionary_v3.2", trigger=">>>", call_begin=">>>", name_end="\n", call_end=""),
    first="",
    following=">>>",
    header_end="\n",
    header=r"(?:>>>)?(?P<name>[\w.-]+)\s*",
    users=("all",),
)
ADDRESSED = {form.name: form for form in (MUSE, FUNCTIONARY)}
# The template contains the text.
_SIGNS = {"<atem:function_calls>": MUSE, ">>>all": FUNCTIONARY}


def addressed_in(template: str) -> AddressedFormat | None:
    """Find the format that a chat template writes; None if it addresses no messages."""
    return next((form for sign, form in _SIGNS.items() if sign in template), None)


class AddressedParser(SteppedParser):
    """Turns one completion's text into deltas; implements Parser.

    `schemas` has the parameters of the functions that may be called. `continues`: the prompt ends
    within a text for the user.
    """

    def __init__(
        self,
        form: AddressedFormat,
        schemas: dict[str, dict[str, Any]],
        *,
        continues: bool = False,
    ) -> None:
        super().__init__()
        self._form = form
        self._schemas = schemas
        self._ends = form.ends_of(schemas)
        self._calls: CallsParser | None = None
        self._num_calls = 0
        self._kind = DeltaKind.CONTENT
        self._step = self._body if continues else self._header

    @property
    def in_reasoning(self) -> bool:
        """Whether the text so far ends inside thoughts."""
        return self._step == self._body and self._kind is DeltaKind.REASONING

    def finish(self) -> list[Delta]:
        """Return the deltas of the buffered text; the text may have ended anywhere."""
        if self._step == self._body:
            self._take(self._text)
            self._end_calls()
        elif not self._form.ends:  # what looks like a header may be text
            self._emit(DeltaKind.CONTENT, self._text)
        self._text = ""
        return self._take_deltas()

    def _header(self) -> bool:
        header, mark, rest = self._text.partition(self._form.header_end)
        if not mark:
            return False
        match = re.fullmatch(self._form.header, header)
        recipient = match["name"] if match else ""
        self._text = rest
        self._step = self._body
        self._kind = self._kind_of(recipient)
        if self._kind is DeltaKind.CALL:
            self._begin_calls(recipient)
        elif not self._form.ends and recipient not in self._form.users:
            self._text = header + mark + rest  # no header after all
        return True

    def _kind_of(self, recipient: str) -> DeltaKind:
        form = self._form
        if recipient in form.selves:
            return DeltaKind.REASONING
        is_function = recipient not in ("", *form.users) and bool(self._schemas)
        if is_function and (form.ends or recipient in self._schemas):
            return DeltaKind.CALL
        return DeltaKind.CONTENT

    def _begin_calls(self, name: str) -> None:
        calls = self._form.calls
        self._calls = CallsParser(calls, self._schemas, self._num_calls)
        if not self._form.repeats_name:
            opening = f"{calls.begin}{calls.call_begin}{name}{calls.name_end}"
            self._deltas += self._calls.feed(opening)

    def _body(self) -> bool:
        positions = [at for mark in self._ends if (at := self._text.find(mark)) >= 0]
        if positions:
            self._take(self._text[: min(positions)])
            self._text = self._text[min(positions) :]
            self._end_calls()
            self._step = self._header
            return True
        num_certain = len(self._text) - partial_match_len(self._text, self._ends)
        self._take(self._text[:num_certain])
        self._text = self._text[num_certain:]
        return False

    def _take(self, text: str) -> None:
        if self._calls is not None and text:
            self._deltas += self._calls.feed(text)
        else:
            self._emit(self._kind, text)

    def _end_calls(self) -> None:
        """End the calls of a message; text that is no call is content."""
        calls, self._calls = self._calls, None
        if calls is None:
            return
        self._deltas += calls.finish()
        self._num_calls = calls.num_calls
        if calls.is_rejected:
            self._emit(DeltaKind.CONTENT, calls.rest)
