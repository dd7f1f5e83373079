"""Reads a call that is a JSON object: {"name": NAME, "arguments": {...}}, keys in any order."""

import json

import regex

from container.text.brackets import BracketScanner

_STRING = r'"(?:[^"\\]|\\.)*"'
_OPENING = regex.compile(r"\s*\{")
_FIRST_MEMBER = regex.compile(rf"\s*({_STRING})\s*:\s*(?=\S)", regex.DOTALL)
_MEMBER = regex.compile(rf"\s*,\s*({_STRING})\s*:\s*(?=\S)", regex.DOTALL)
_CLOSE = regex.compile(r"\s*\}")
_STRING_VALUE = regex.compile(_STRING, regex.DOTALL)
_BARE_VALUE = regex.compile(r"[^\s,{}\[\]\"]+(?=[\s,}\]])")
_NAME_KEYS = {"name", "tool_name", "function"}
_ARGUMENT_KEYS = {"arguments", "parameters"}


class CallObject:
    """Reads one object from streamed text.

    `name` is "" until it is known; `take` returns the arguments as far as they are certain, once
    the name is known. `is_broken` if the text is not such an object.
    """

    def __init__(self, name_key: str, arguments_key: str) -> None:
        self._name_keys = _NAME_KEYS | {name_key}
        self._argument_keys = _ARGUMENT_KEYS | {arguments_key}
        self._depth = 0
        self._opens = True  # an object begins
        self._is_first = False  # no key was read in this object
        self._key: str | None = None  # whose value comes next
        self._scanner: BracketScanner | None = None  # inside a value in brackets
        self._is_arguments = False
        self._arguments = ""
        self.name = ""
        self.is_done = False
        self.is_broken = False
        self.rest = ""  # not read yet; after the object once it is done

    def feed(self, text: str) -> None:
        """Read more text."""
        self.rest += text
        while not self.is_done and not self.is_broken and self._step():
            pass

    def take(self) -> str:
        """Return the arguments that were read since the last time; "" before the name is known."""
        if not self.name:
            return ""
        arguments, self._arguments = self._arguments, ""
        return arguments

    def _step(self) -> bool:
        if self._scanner is not None:
            return self._scan(self._scanner)
        if self._key is None:
            return self._read_key()
        return self._read_value(self._key)

    def _read_key(self) -> bool:
        """Read the next key, or the end of an object."""
        if self._opens:
            opening = _OPENING.match(self.rest, partial=True)
            return self._accept(opening) and self._open()
        close = _CLOSE.match(self.rest, partial=True)
        if close is not None and not close.partial:
            self.rest = self.rest[close.end() :]
            self._depth -= 1
            self.is_done = self._depth == 0
            self.is_broken = self.is_done and not self.name
            return True
        member = (_FIRST_MEMBER if self._is_first else _MEMBER).match(self.rest, partial=True)
        if member is not None and member.partial:
            return False
        return self._accept(member) and self._begin_value(_text(member[1]))

    def _accept(self, match: "regex.Match[str] | None") -> bool:
        """Consume a match at the start of the text; without one the text is malformed."""
        self.is_broken = match is None
        if match is None or match.partial:
            return False
        self.rest = self.rest[match.end() :]
        return True

    def _open(self) -> bool:
        self._opens, self._is_first = False, True
        self._depth += 1
        return True

    def _begin_value(self, key: str) -> bool:
        self._key, self._is_first = key, False
        return True

    def _read_value(self, key: str) -> bool:
        first = self.rest[0]
        if first == "{" and key == "function":
            self._opens, self._key = True, None
            return True
        self._is_arguments = key in self._argument_keys
        if first in "{[":
            self._scanner = BracketScanner()
            return True
        value = (_STRING_VALUE if first == '"' else _BARE_VALUE).match(self.rest, partial=True)
        if value is None or value.partial:
            self.is_broken = value is None
            return False
        self._take_scalar(key, value[0])
        self.rest = self.rest[value.end() :]
        self._key = None
        return True

    def _take_scalar(self, key: str, value: str) -> None:
        text = _text(value) if value.startswith('"') else None
        if key in self._name_keys and text:
            self.name = text
        elif self._is_arguments:  # an object as a string, or none
            self._arguments += text if text and text.lstrip().startswith("{") else "{}"

    def _scan(self, scanner: BracketScanner) -> bool:
        length = scanner.scan(self.rest)
        if self._is_arguments:
            self._arguments += self.rest[:length]
        self.rest = self.rest[length:]
        if not scanner.is_closed:
            return False
        self._scanner = self._key = None
        return True


def _text(literal: str) -> str:
    try:
        return str(json.loads(literal, strict=False))
    except ValueError:
        return literal[1:-1]
