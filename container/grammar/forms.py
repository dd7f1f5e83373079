"""The forms of a request's grammar: plain data that frontends check for type and size only.

Only a grammar process reads it with native code, which may crash: container.grammar.process.
"""

import json
from typing import Any

import msgspec

from container.errors import InvalidParameter

# Enough for any schema or grammar written by hand, and for most generated ones.
MAX_CHARACTERS = 500_000
MAX_CHOICES = 20_000
ANY_OBJECT: dict[str, Any] = {"type": "object"}


class JsonSchema(msgspec.Struct, frozen=True, tag="json_schema"):
    """A JSON value that matches a schema; `is_strict`: objects have no undeclared keys."""

    schema: dict[str, Any]
    field: str
    is_strict: bool = False


class Regex(msgspec.Struct, frozen=True, tag="regex"):
    """A regular expression for the whole completion."""

    pattern: str
    field: str


class Choice(msgspec.Struct, frozen=True, tag="choice"):
    """One of several strings."""

    options: list[str]
    field: str


class Lark(msgspec.Struct, frozen=True, tag="lark"):
    """A grammar in llguidance's dialect of Lark."""

    text: str
    field: str


class Ebnf(msgspec.Struct, frozen=True, tag="ebnf"):
    """A grammar in GBNF, the EBNF of vLLM's and SGLang's users, or in Lark."""

    text: str
    field: str


Answer = JsonSchema | Regex | Choice | Lark | Ebnf


def schema_answer(
    schema: object, field: str, *, means_object: bool = False, is_strict: bool = False
) -> JsonSchema:
    """Check a JSON Schema: an object, or a string that contains one. Raises InvalidParameter.

    `means_object`: a schema with `properties` and no `type` describes an object, as in TGI; by JSON
    Schema itself it would also accept a string.
    """
    if isinstance(schema, str):
        check_size(schema, field)
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InvalidParameter(
                f"`{field}`: the schema is not valid JSON: {error}", field=field
            ) from None
    if not isinstance(schema, dict):
        raise InvalidParameter(f"`{field}`: a JSON Schema must be an object", field=field)
    check_schema_size(schema, field)
    if means_object and "properties" in schema and "type" not in schema:
        schema = {"type": "object"} | schema
    return JsonSchema(schema, field, is_strict)


def regex_answer(pattern: str, field: str) -> Regex:
    """Check a regular expression. Raises InvalidParameter for one that is too long."""
    check_size(pattern, field)
    return Regex(pattern, field)


def choice_answer(options: list[str], field: str) -> Choice:
    """Check a choice of strings. Raises InvalidParameter."""
    if not options or not all(isinstance(option, str) and option for option in options):
        raise InvalidParameter(f"`{field}` must be a list of non-empty strings", field=field)
    if len(options) > MAX_CHOICES:
        raise InvalidParameter(
            f"`{field}` has {len(options)} strings; the limit is {MAX_CHOICES}", field=field
        )
    check_size("".join(options), field)
    return Choice(options, field)


def lark_answer(text: str, field: str) -> Lark:
    """Check a grammar in Lark. Raises InvalidParameter for one that is too long."""
    check_size(text, field)
    return Lark(text, field)


def ebnf_answer(text: str, field: str) -> Ebnf:
    """Check a grammar in GBNF or Lark. Raises InvalidParameter for one that is empty or long."""
    check_size(text, field)
    if not text.strip():
        raise InvalidParameter(f"`{field}` must not be empty", field=field)
    return Ebnf(text, field)


def check_schema_size(schema: dict[str, Any], field: str) -> None:
    """Raise InvalidParameter for a schema that is too long or nested too deeply to be written."""
    try:
        check_size(json.dumps(schema), field)
    except RecursionError:
        raise InvalidParameter(f"`{field}`: the schema is nested too deeply", field=field) from None


def check_size(text: str, field: str) -> None:
    """Raise InvalidParameter for a text that is too long."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidParameter(
            f"`{field}` has {len(text)} characters; the limit is {MAX_CHARACTERS}", field=field
        )
