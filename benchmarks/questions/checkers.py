"""Checks answers of a model against rules that are data; answers/questions.jsonl has them.

A check is an object with a `kind`:

    {"kind": "number", "value": 12}        the last number of the answer
    {"kind": "regex", "pattern": "paris"}  is somewhere in it; case does not matter
    {"kind": "json", "shape": SHAPE}       the answer, or the block it begins with, parses and fits
    {"kind": "format", RULE: value, ...}   every rule of FORMAT_RULES holds

A SHAPE is the name of a JSON type, {"value": exactly this}, {"keys": {name: SHAPE}} or
{"items": SHAPE, "count": n}. Other keys than the named ones are allowed. Only the standard library
is needed here.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any

MINUS_SIGN = "\N{MINUS SIGN}"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
# A minus is a sign only where no number or word ends before it: "7-5" has no -5.
SUBTRACTION = re.compile(r"(?<=[\w)])-(?=\d)")
# A small model goes on after its code block; what it says there is not judged.
CODE_BLOCK = re.compile(r"\s*```(?:json)?\s*\n(.*?)```", re.DOTALL)
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def is_right(check: dict[str, Any], answer: str) -> bool:
    """Return whether an answer passes its check."""
    return CHECKERS[check["kind"]](check, answer)


def _has_number(check: dict[str, Any], answer: str) -> bool:
    text = SUBTRACTION.sub(" ", THOUSANDS.sub("", answer.replace(MINUS_SIGN, "-")))
    numbers = NUMBER.findall(text)
    return bool(numbers) and math.isclose(float(numbers[-1]), check["value"])


def _matches(check: dict[str, Any], answer: str) -> bool:
    return re.search(check["pattern"], answer, re.IGNORECASE) is not None


def _is_json(check: dict[str, Any], answer: str) -> bool:
    block = CODE_BLOCK.match(answer)
    try:
        value = json.loads(block[1] if block else answer)
    except (ValueError, RecursionError):
        return False
    return fits(value, check["shape"])


def fits(value: Any, shape: Any) -> bool:
    """Return whether a JSON value has a shape; see the module's docstring."""
    if isinstance(shape, str):
        is_bool = isinstance(value, bool) and shape != "boolean"
        return isinstance(value, JSON_TYPES[shape]) and not is_bool
    if "value" in shape:
        return _equals(value, shape["value"])
    if "keys" in shape:
        is_object = isinstance(value, dict) and shape["keys"].keys() <= value.keys()
        return is_object and all(fits(value[key], part) for key, part in shape["keys"].items())
    is_array = isinstance(value, list) and len(value) == shape.get("count", len(value))
    return is_array and all(fits(item, shape["items"]) for item in value)


def _equals(value: Any, expected: Any) -> bool:
    """Compare as JSON: 1 is 1.0 and not true; of a text, case does not matter."""
    if isinstance(value, str) and isinstance(expected, str):
        return value.strip().lower() == expected.lower()
    if isinstance(value, list) and isinstance(expected, list):
        pairs = zip(value, expected, strict=False)
        return len(value) == len(expected) and all(_equals(*pair) for pair in pairs)
    return bool(value == expected) and isinstance(value, bool) == isinstance(expected, bool)


def _has_format(check: dict[str, Any], answer: str) -> bool:
    text = answer.strip()
    rules = {name: value for name, value in check.items() if name != "kind"}
    return bool(text) and all(FORMAT_RULES[name](text, value) for name, value in rules.items())


def _bare(text: str) -> str:
    """Strip what surrounds an answer of a word or two: quotes, a full stop, case."""
    return text.strip().strip("\"'.!").lower()


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _list_items(text: str) -> list[str]:
    return [item for item in text.split(",") if item.strip()] if len(_lines(text)) == 1 else []


FORMAT_RULES: dict[str, Callable[[str, Any], bool]] = {
    "words": lambda text, count: len(text.split()) == count,
    "max_words": lambda text, most: len(text.split()) <= most,
    "sentences": lambda text, count: len(SENTENCE_END.findall(text)) == count,
    "lines": lambda text, count: len(_lines(text)) == count,
    "each_line": lambda text, rule: all(re.fullmatch(rule, line) for line in _lines(text)),
    "items": lambda text, count: len(_list_items(text)) == count,
    "one_of": lambda text, options: _bare(text) in options,
    "starts": lambda text, start: text.lower().lstrip("\"'").startswith(start),
    "ends": lambda text, end: text.lower().rstrip("\"'").endswith(end),
    "includes": lambda text, parts: all(part in text.lower() for part in parts),
    "excludes": lambda text, parts: not any(part in text.lower() for part in parts),
    "upper": lambda text, _: text.isupper(),
    "lower": lambda text, _: text.islower(),
    "pattern": lambda text, pattern: re.fullmatch(pattern, text) is not None,
}
CHECKERS: dict[str, Callable[[dict[str, Any], str], bool]] = {
    "number": _has_number,
    "regex": _matches,
    "json": _is_json,
    "format": _has_format,
}
