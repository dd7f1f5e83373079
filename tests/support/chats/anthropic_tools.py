"""A tool as Anthropic's API describes it."""

from typing import Any

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the weather",
    "input_schema": {
        "type": "object",
        "properties": {"location": {"type": "string", "maxLength": 20}},
        "required": ["location"],
    },
}
