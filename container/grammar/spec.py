"""Grammars as clients ask for them, checked and in llguidance's own form.

Each function returns the text that SamplingParams.grammar carries to the engine, and raises
InvalidParameter naming `field` for one that cannot be followed. Cheap (a millisecond), but a large
one takes longer: call it where it holds up nobody else.
"""

import json
import re
from typing import Any

from llguidance import LLMatcher

from container.errors import InvalidParameter
from container.grammar import json_schema

# Enough for any schema or grammar that people write by hand, and for most that programs write.
MAX_CHARACTERS = 500_000
ANY_OBJECT: dict[str, Any] = {"type": "object"}
# A marker of the model's format that is one token of its own: `<[id]>` in llguidance's Lark.
LARK_HEADER = "%llguidance {}\n"


def from_schema(schema: object, field: str, *, means_object: bool = False) -> str:
    """A JSON Schema: an object, or a string that has one.

    `means_object`: one with `properties` and no `type` is of an object, as TGI reads it; in JSON
    Schema itself it would let a string pass too.
    """
    schema_object = read_schema(schema, field)
    if means_object and "properties" in schema_object and "type" not in schema_object:
        schema_object = {"type": "object"} | schema_object
    return json_schema.grammar_of(schema_object)


def read_schema(schema: object, field: str) -> json_schema.Schema:
    """Check a JSON Schema and return it as an object."""
    if isinstance(schema, str):
        _check_size(schema, field)
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InvalidParameter(
                f"`{field}`: the schema is not valid JSON: {error}", field=field
            ) from None
    if not isinstance(schema, dict):
        raise InvalidParameter(f"`{field}`: a JSON Schema must be an object", field=field)
    try:
        _check_size(json.dumps(schema), field)
        json_schema.check(schema, field)
    except RecursionError:
        raise InvalidParameter(f"`{field}`: the schema is nested too deeply", field=field) from None
    return schema


def from_regex(pattern: str, field: str) -> str:
    """A regular expression for the whole completion (Rust's syntax, without look-around)."""
    _check_size(pattern, field)
    return _checked(LLMatcher.grammar_from_regex(pattern), field, "the regex cannot be followed")


def from_choice(options: list[str], field: str) -> str:
    """One of several strings."""
    if not options or not all(options):
        raise InvalidParameter(f"`{field}` must be a list of non-empty strings", field=field)
    _check_size("".join(options), field)
    choices = " | ".join(lark_string(option) for option in options)
    return _checked(f"{LARK_HEADER}start: {choices}\n", field, "the choice cannot be followed")


def from_lark(text: str, field: str) -> str:
    """A grammar in llguidance's dialect of Lark."""
    _check_size(text, field)
    return _checked(LLMatcher.grammar_from_lark(text), field, "the grammar cannot be followed")


def lark_string(text: str) -> str:
    """A literal of a Lark grammar."""
    return json.dumps(text)


def _check_size(text: str, field: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise InvalidParameter(
            f"`{field}` has {len(text)} characters; the limit is {MAX_CHARACTERS}", field=field
        )


def _checked(grammar: str, field: str, subject: str) -> str:
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if is_wrong:
        # The library quotes the grammar made of the client's text; its own lines say little more.
        reason = re.split(r"\n +\d+ \| ", messages[0])[0]
        raise InvalidParameter(f"`{field}`: {subject}: {reason.strip()}", field=field)
    return grammar
