"""The arguments of earlier tool calls: an object, or the text that the model wrote.

A completion that was cut by its length leaves text that is not JSON.
"""

import json
import re
from typing import Any

from pydantic_core import from_json

# What completes a cut key, a key without its colon, and a key without its value.
_ENDINGS = (
    (re.compile(r'[{,]\s*"(?:[^"\\]|\\.)*$'), '": ""'),
    (re.compile(r'[{,]\s*"(?:[^"\\]|\\.)*"\s*$'), ': ""'),
    (re.compile(r":\s*$"), '""'),
    (re.compile(""), ""),
)


def as_text(arguments: Any) -> str:
    """Return arguments as the model writes them: an object as JSON, text unchanged."""
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False)


def with_text_values(arguments: Any) -> Any:
    """Write the values of an object as text, for templates that concatenate them."""
    if not isinstance(arguments, dict):
        return arguments
    return {key: as_text(value) for key, value in arguments.items()}


def as_object(arguments: Any) -> dict[str, Any]:
    """Return arguments as an object: closes JSON that was cut, and puts other text under a key."""
    if isinstance(arguments, dict):
        return arguments
    text = str(arguments).strip()
    if text in ("", "null"):
        return {}
    for pattern, ending in _ENDINGS:
        if not pattern.search(text):
            continue
        try:
            value = from_json(text + ending, allow_partial="trailing-strings")
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return {"arguments": text}
