"""Describes a format of tool calls as the fixed texts around names and arguments.

    begin | call_begin NAME name_end ARGUMENTS call_end | separator | call_begin ... | end

The parser, the grammar and the learner share this description.
"""

import functools
import re
from dataclasses import dataclass
from enum import Enum

# Stand for a varying text inside a fixed one: a call's id, its index, and a parameter's name.
ID, INDEX, KEY = "\ue000", "\ue001", "\ue002"
FIELDS = ID + INDEX + KEY

JSON_TYPES = ("string", "number", "boolean", "null", "object", "array")

_ATOM = re.compile(rf"\s+|[{FIELDS}]|[^\s{FIELDS}]")
_CLOSING, _OPENING = ">])}[{,", "<[{}])"
_INNER_MARK = re.compile(r"\s*(<[^<>\s\"'=/]+[=>]?)")
_MEMBERS = r'(?:"\w+"\s*:\s*"[^"{}]*"\s*,\s*)*'
_FUNCTION = r'(?:"function"\s*:\s*\{\s*)?'
_OBJECT_BEGIN = re.compile(rf'\{{\s*{_MEMBERS}{_FUNCTION}{_MEMBERS}"(\w+)"\s*:\s*"$')
_OBJECT_NAME_END = re.compile(r'"\s*,\s*"(\w+)"\s*:\s*$')


class ArgumentStyle(Enum):
    """The syntax of a call's arguments."""

    JSON = "json"
    PYTHON = "python"  # name=value, separated by commas
    XML = "xml"  # pairs between marks; strings without quotes, other values as JSON
    GEMMA = "gemma"  # see container.text.gemma_arguments


@dataclass(frozen=True, slots=True)
class PairMarks:
    """The fixed texts around the pairs of the style XML: open KEY key_end VALUE close.

    `key_ends` has the text for each JSON type if the format writes types, else one for all.
    `close` may contain KEY.
    """

    open: str
    key_ends: tuple[str, ...]
    close: str
    separator: str = ""

    @property
    def is_typed(self) -> bool:
        """Whether a pair names its value's type."""
        return len(self.key_ends) > 1

    @property
    def nests(self) -> bool:
        """Whether objects and arrays are written as nested pairs, items with the key `item`."""
        return KEY in self.close

    def key_end(self, json_type: str) -> str:
        """Return the text between a key and a value of a type."""
        return self.key_ends[JSON_TYPES.index(json_type)] if self.is_typed else self.key_ends[0]


PARAMETER_LINES = PairMarks(open="<parameter=", key_ends=(">\n",), close="\n</parameter>\n")


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The fixed texts around tool calls; ID and INDEX in them stand for varying texts.

    `trigger` marks the start of the calls where text may precede them; a format `only_at_start`
    has calls instead of text, never after it. `other_triggers` are marks that some models write in
    place of the trigger, or before calls without marks. `quote` is around strings in GEMMA;
    `optional` is a part of the opening that models may leave out.
    """

    name: str
    trigger: str
    call_begin: str
    name_end: str
    call_end: str
    separator: str = ""
    begin: str = ""
    end: str = ""
    arguments: ArgumentStyle = ArgumentStyle.JSON
    only_at_start: bool = False
    pairs: PairMarks = PARAMETER_LINES
    quote: str = "<escape>"
    optional: str = ""
    first_index: int = 0
    other_triggers: tuple[str, ...] = ()
    allows_several: bool = True

    @property
    def markers(self) -> str:
        """All fixed texts joined, to find the special tokens among them."""
        texts = [
            self.begin,
            self.call_begin,
            self.name_end,
            self.call_end,
            self.separator,
            self.end,
        ]
        if self.arguments is ArgumentStyle.GEMMA:
            texts.append(self.quote)
        if self.arguments is ArgumentStyle.XML:
            texts += [self.pairs.open, *self.pairs.key_ends, self.pairs.close, self.pairs.separator]
        return "".join(texts)

    @property
    def triggers(self) -> list[str]:
        """All marks that calls may begin with, where text may precede them."""
        own = [self.trigger, self.inner_trigger] if not self.only_at_start else self._bare_openings
        return [mark for mark in (*own, *self.other_triggers) if mark]

    @property
    def _bare_openings(self) -> list[str]:
        """How a JSON object without a mark begins behind text; only a known function is a call."""
        if self.object_keys is None or self.object_prefix.strip():
            return []
        brackets = self.begin.strip() + "{"
        return [f'{brackets}{gap}"{self.object_keys[0]}"' for gap in ("", " ", "\n  ", "\n    ")]

    @property
    def inner_trigger(self) -> str:
        """The second mark of the calls' opening, which some models begin with; "" if none."""
        opening = (self.begin + self.call_begin).strip()
        inner = _INNER_MARK.match(opening.removeprefix(self.trigger))
        texts = self.begin + self.call_begin + self.name_end + self.call_end + self.end
        if inner is None or not opening.startswith(self.trigger) or texts.count(inner[1]) > 1:
            return ""
        return inner[1]

    @property
    def object_keys(self) -> tuple[str, str] | None:
        """The keys of the name and the arguments if a call is a JSON object, else None."""
        begin = _OBJECT_BEGIN.search(self.call_begin)
        name_end = _OBJECT_NAME_END.match(self.name_end)
        return (begin[1], name_end[1]) if begin and name_end else None

    @property
    def object_prefix(self) -> str:
        """The part of `call_begin` before the JSON object of a call."""
        begin = _OBJECT_BEGIN.search(self.call_begin)
        return self.call_begin[: begin.start()] if begin else self.call_begin


@functools.cache
def flexible(text: str) -> str:
    """Write a regex for a fixed text, whose white space may vary, and its fields.

    White space may also stand between a mark's end, or a bracket, and the next one's beginning.
    """
    source, before = "", ""
    for atom in _ATOM.findall(text):
        if atom.isspace():
            source += r"\s*"
        elif atom == ID:
            source += r"[\w.:-]+?"
        elif atom == INDEX:
            source += r"\d+"
        else:
            is_gap = before in _CLOSING and atom in _OPENING
            source += (r"\s*" if before and is_gap else "") + re.escape(atom)
        before = atom
    return source
