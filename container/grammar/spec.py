"""Checks the grammars of client requests and converts them to llguidance's form.

Each function returns the text that SamplingParams.grammar carries to the engine, and raises
InvalidParameter naming `field` for a grammar that is not supported. This takes about a millisecond,
but longer for a large grammar: call it where it blocks no other request.
"""

import json
import re
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from container.errors import InvalidParameter
from container.grammar import json_schema

# Enough for any schema or grammar written by hand, and for most generated ones.
MAX_CHARACTERS = 500_000
ANY_OBJECT: dict[str, Any] = {"type": "object"}
# The header that makes llguidance's Lark read `<[id]>` as a token.
LARK_HEADER = "%llguidance {}\n"


def from_schema(schema: object, field: str, *, means_object: bool = False) -> str:
    """Convert a JSON Schema: an object, or a string that contains one.

    `means_object`: a schema with `properties` and no `type` describes an object, as in TGI; by JSON
    Schema itself it would also accept a string.
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
    """Convert a regular expression for the whole completion (Rust syntax, no look-around)."""
    _check_size(pattern, field)
    return _checked(LLMatcher.grammar_from_regex(pattern), field, "the regex is not supported")


def from_choice(options: list[str], field: str) -> str:
    """Convert a choice of strings."""
    if not options or not all(options):
        raise InvalidParameter(f"`{field}` must be a list of non-empty strings", field=field)
    _check_size("".join(options), field)
    choices = " | ".join(lark_string(option) for option in options)
    return _checked(f"{LARK_HEADER}start: {choices}\n", field, "the choice is not supported")


def from_lark(text: str, field: str) -> str:
    """Check a grammar in llguidance's dialect of Lark."""
    _check_size(text, field)
    return _checked(LLMatcher.grammar_from_lark(text), field, "the grammar is not supported")


def from_ebnf(text: str, field: str) -> str:
    """Convert a grammar in GBNF, the EBNF of vLLM's and SGLang's users, or in Lark."""
    _check_size(text, field)
    if not text.strip():
        raise InvalidParameter(f"`{field}` must not be empty", field=field)
    try:
        lark = any_to_lark(text)
    except GbnfToLarkError as error:
        raise InvalidParameter(
            f"`{field}`: the grammar is not supported: {error}", field=field
        ) from None
    except Exception:  # the converter meets some mistakes unprepared
        raise InvalidParameter(
            f"`{field}`: the grammar is neither GBNF nor Lark", field=field
        ) from None
    return from_lark(lark, field)


def lark_string(text: str) -> str:
    """Quote a text as a Lark literal."""
    return json.dumps(text)


def _check_size(text: str, field: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise InvalidParameter(
            f"`{field}` has {len(text)} characters; the limit is {MAX_CHARACTERS}", field=field
        )


def _checked(grammar: str, field: str, subject: str) -> str:
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if is_wrong:
        # The library appends the generated grammar to its message; the client cannot use that.
        reason = re.split(r"\n +\d+ \| ", messages[0])[0]
        raise InvalidParameter(f"`{field}`: {subject}: {reason.strip()}", field=field)
    return grammar
