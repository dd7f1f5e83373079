"""Parses arguments of Gemma's function-calling models: `city:<escape>Paris<escape>,days:3`.

Keys are bare, or JSON strings if they have signs of the form; strings stand between two marks,
objects and arrays nest; all else is JSON. Source: the chat template published with FunctionGemma.
"""

import json
import re
from typing import Any

QUOTE = "<escape>"
_GAP = re.compile(r"[,\s]*")
_BARE = re.compile(r"[^,}\]]*")
_ODD_KEY = re.compile(r'[{}\[\]:,"<>\\\n]|^$')
_NAMES = {"None": None, "True": True, "False": False}
_decoder = json.JSONDecoder()


def write(value: object, quote: str = QUOTE) -> str:
    """Write a value; an object in its braces."""
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        pairs = ",".join(f"{_key(key)}:{write(item, quote)}" for key, item in value.items())
        return f"{{{pairs}}}"
    if isinstance(value, list):
        return f"[{','.join(write(item, quote) for item in value)}]"
    return json.dumps(value)


def _key(key: str) -> str:
    return json.dumps(key, ensure_ascii=False) if _ODD_KEY.search(key) else key


def read(text: str, quote: str = QUOTE) -> dict[str, Any]:
    """Parse the arguments between the braces. Raises ValueError for text of another form."""
    reader = _Reader(text, quote)
    arguments = reader.pairs("")
    if reader.position != len(text):
        raise ValueError("text after the arguments")
    return arguments


class _Reader:
    """Reads values from `position` on."""

    def __init__(self, text: str, quote: str) -> None:
        self._text = text
        self._quote = quote
        self.position = 0

    def pairs(self, end: str) -> dict[str, Any]:
        """Read comma-separated `key:value` pairs, up to and including `end`."""
        arguments: dict[str, Any] = {}
        while not self._takes_end(end):
            key = self._key()
            arguments[key] = self._value()
        return arguments

    def _key(self) -> str:
        """Read a key and the colon behind it."""
        before = _GAP.match(self._text, self.position)
        assert before is not None
        self.position = before.end()
        quoted = self._quoted_key()
        key, colon, _ = self._text[self.position :].partition(":")
        if not colon:
            raise ValueError("a key without a value")
        self.position += len(key) + 1
        if quoted is not None:
            return quoted
        return key.strip().strip('"').removeprefix(self._quote).removesuffix(self._quote)

    def _quoted_key(self) -> str | None:
        """Read a key that is a JSON string, if there is one before the colon."""
        if not self._text.startswith('"', self.position):
            return None
        try:
            key, end = _decoder.raw_decode(self._text, self.position)
        except ValueError:
            return None
        if not self._text[end:].lstrip().startswith(":"):
            return None
        self.position = end
        return str(key)

    def _value(self) -> Any:
        if self._takes(self._quote):
            content, quote, _ = self._text[self.position :].partition(self._quote)
            if not quote:
                raise ValueError("a string without an end")
            self.position += len(content) + len(quote)
            return content
        try:
            value, self.position = _decoder.raw_decode(self._text, self.position)
            return value
        except ValueError:
            pass
        if self._takes("{"):
            return self.pairs("}")
        if self._takes("["):
            return self._items()
        bare = _BARE.match(self._text, self.position)
        assert bare is not None
        self.position = bare.end()
        return _NAMES.get(bare.group().strip(), bare.group())

    def _items(self) -> list[Any]:
        items = []
        while not self._takes_end("]"):
            self._takes(",")
            items.append(self._value())
        return items

    def _takes_end(self, end: str) -> bool:
        if self.position >= len(self._text):
            if end:
                raise ValueError(f"{end} is missing")
            return True
        return bool(end) and self._takes(end)

    def _takes(self, mark: str) -> bool:
        if not self._text.startswith(mark, self.position):
            return False
        self.position += len(mark)
        return True
