"""Reads and writes the arguments of a call in the styles of ArgumentStyle."""

import ast
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

from container.text import gemma_arguments
from container.text.brackets import BracketScanner
from container.text.tool_calls.syntax import (
    KEY,
    ArgumentStyle,
    PairMarks,
    ToolFormat,
    flexible,
)
from container.text.tool_calls.value_types import follow, property_schema, type_of, types_of

_NAMES = {"true": True, "false": False, "null": None}
_CDATA = "<![CDATA["


def to_json(form: ToolFormat, text: str, schema: dict[str, Any]) -> str:
    """Convert the arguments of a complete call to a JSON object.

    Text that does not parse in this style is returned unchanged.
    """
    try:
        return json.dumps(_read(form, text, schema), ensure_ascii=False)
    except (SyntaxError, ValueError):
        return text


def cut_to_json(form: ToolFormat, text: str, schema: dict[str, Any]) -> str:
    """Convert arguments that were cut to the start of a JSON object, with all complete pairs."""
    if form.arguments is ArgumentStyle.XML:
        pairs = _from_pairs(form.pairs, text, schema)
    else:
        pairs = _longest(form, text, schema)
    return json.dumps(pairs, ensure_ascii=False)[:-1] if pairs else ""


def write(form: ToolFormat, arguments: dict[str, Any]) -> str:
    """Write arguments as a model would."""
    if form.arguments is ArgumentStyle.JSON:
        return json.dumps(arguments, ensure_ascii=False)
    if form.arguments is ArgumentStyle.PYTHON:
        return ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    if form.arguments is ArgumentStyle.GEMMA:
        return gemma_arguments.write(arguments, form.quote)[1:-1]
    return form.pairs.separator.join(
        _write_pair(form.pairs, key, value) for key, value in arguments.items()
    )


def is_plain_text(schema: Any, root: dict[str, Any] | None = None) -> bool:
    """Whether values of this schema are strings, which some formats write without quotes."""
    return isinstance(schema, dict) and types_of(schema, root) == {"string"}


def _read(form: ToolFormat, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    if form.arguments is ArgumentStyle.PYTHON:
        return dict(_python_pairs(text))
    if form.arguments is ArgumentStyle.GEMMA:
        values = gemma_arguments.read(text, form.quote)
        return {
            key: _retyped(value, property_schema(schema, key, schema), schema)
            for key, value in values.items()
        }
    return _from_pairs(form.pairs, text, schema)


def _longest(form: ToolFormat, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Read the longest start of the text that ends before a comma and parses."""
    for comma in reversed([match.start() for match in re.finditer(",", text)][:200]):
        try:
            return _read(form, text[:comma], schema)
        except (SyntaxError, ValueError):
            continue
    return {}


def _python_pairs(text: str) -> Iterator[tuple[str, Any]]:
    """Iterate over `name=value` pairs; a name may be anything. Raises ValueError, SyntaxError."""
    start = 0
    for stop in (*_commas(text), len(text)):
        key, equals, value = text[start:stop].partition("=")
        if equals:
            yield key.strip(), _value(_parsed(value.strip()).body)
        elif key.strip():
            raise ValueError("an argument without a name")
        start = stop + 1


def _parsed(value: str) -> ast.Expression:
    try:
        return ast.parse(f"({value})", mode="eval")
    except SyntaxError:  # a line break in a string
        return ast.parse(value.replace("\n", "\\n"), mode="eval")


def _commas(text: str) -> list[int]:
    """Find the commas outside of brackets and quotes."""
    scanner = BracketScanner(depth=1, quotes="\"'")
    return [index for index, character in enumerate(text) if scanner.is_top(character)]


def _value(node: ast.expr) -> Any:
    """Evaluate a literal of Python or JSON."""
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [_value(element) for element in node.elts]
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_value, node.values), strict=True))
    return ast.literal_eval(node)


def _from_pairs(marks: PairMarks, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _pair_value(marks, key_end, value, property_schema(schema, key, schema), schema)
        for key, key_end, value in _pairs(marks, text)
    }


def _pair_value(
    marks: PairMarks, key_end: str, value: str, schema: Any, root: dict[str, Any]
) -> Any:
    if marks.is_typed:
        is_string = re.fullmatch(flexible(marks.key_end("string")), key_end) is not None
        return value if is_string else _typed(value, None, root)
    is_nested = marks.nests and not is_plain_text(schema, root)
    if is_nested and not value.strip() and "string" not in types_of(schema, root):
        return [] if "array" in types_of(schema, root) else {}
    if not is_nested or not value.lstrip().startswith(marks.open.strip()):
        return _typed(value, schema, root)
    schema = follow(schema, root)
    pairs = list(_pairs(marks, value))
    if pairs and all(key == "item" for key, _, _ in pairs) and "array" in types_of(schema, root):
        items = schema.get("items")
        return [_pair_value(marks, key_end, item, items, root) for _, key_end, item in pairs]
    return {
        key: _pair_value(marks, key_end, item, property_schema(schema, key, root), root)
        for key, key_end, item in pairs
    }


def _pairs(marks: PairMarks, text: str) -> Iterator[tuple[str, str, str]]:
    """Iterate over the pairs of a text: key, the mark after it, and the value's text."""
    begin = _pair_begin(marks)
    position = 0
    while (match := begin.search(text, position)) is not None:
        end = _pair_end(marks, match["key"].strip(), text, match.end())
        if end is None:
            return
        position = end.end()
        value = _trimmed(marks, text[match.end() : end.start()])
        if value.startswith(_CDATA) and value.endswith("]]>"):
            value = value[len(_CDATA) : -3]
        yield match["key"].strip(), match["end"], value


def _pair_end(marks: PairMarks, key: str, text: str, position: int) -> re.Match[str] | None:
    """Find the text that closes a pair; where values nest, the one of the same depth."""
    close = re.compile(flexible(marks.close.strip().replace(KEY, key)))
    if not marks.nests:
        return close.search(text, position)
    opened = flexible((marks.open + key + marks.key_ends[0]).strip())
    depth = 1
    for mark in re.finditer(f"(?P<open>{opened})|{close.pattern}", text[position:]):
        depth += 1 if mark["open"] else -1
        if depth == 0:
            return close.search(text, position + mark.start())
    return None


@functools.cache
def _pair_begin(marks: PairMarks) -> re.Pattern[str]:
    ends = "|".join(flexible(text.rstrip()) for text in dict.fromkeys(marks.key_ends))
    return re.compile(rf"{flexible(marks.open.lstrip())}(?P<key>[^<>\n]+?)(?P<end>{ends})")


def _trimmed(marks: PairMarks, value: str) -> str:
    """Remove the line breaks around a value, if the format writes them."""
    if marks.key_ends[0].endswith("\n"):
        value = value.removeprefix("\n")
    return value.removesuffix("\n") if marks.close.startswith("\n") else value


def _typed(text: str, schema: Any, root: dict[str, Any]) -> Any:
    """Read a value; as a string if the schema allows one and not the type that it seems to have."""
    types = types_of(schema, root)
    if types == {"string"}:
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
            if type_of(value) in types or "string" not in types:
                return value
        except (ValueError, SyntaxError, KeyError, MemoryError, RecursionError):
            continue
    return text


def _retyped(value: Any, schema: Any, root: dict[str, Any]) -> Any:
    """Read a string as a value if the schema has another type."""
    is_other = isinstance(value, str) and "string" not in types_of(schema, root)
    return _typed(value, schema, root) if is_other else value


def _write_pair(marks: PairMarks, key: str, value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    key_end = marks.key_end(type_of(value))
    return f"{marks.open}{key}{key_end}{text}{marks.close.replace(KEY, key)}"
