"""Converts the grammars of requests to llguidance's form; runs in grammar processes only.

Native code reads here what clients wrote: it may recurse without end, or take all memory.
"""

import json
import re

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from container.errors import InvalidParameter
from container.grammar import json_schema
from container.grammar.forms import Answer, Choice, Ebnf, JsonSchema, Lark, Regex

# The header that makes llguidance's Lark read `<[id]>` as a token.
LARK_HEADER = "%llguidance {}\n"
MAX_REASON = 400  # characters of the library's own words in an error


def answer_grammar(answer: Answer) -> str:
    """Convert an answer's form. Raises InvalidParameter, naming its field, if it cannot be."""
    match answer:
        case JsonSchema(schema, field, is_strict):
            return json_schema.grammar_of(schema, field, is_strict=is_strict)
        case Regex(pattern, field):
            grammar = LLMatcher.grammar_from_regex(pattern)
            return _checked(grammar, field, "the regex is not supported")
        case Choice(options, field):
            # As one expression: as a rule with thousands of literals it would take seconds.
            pattern = "|".join(map(regex_literal, options))
            return _checked(
                LLMatcher.grammar_from_regex(pattern), field, "the choice is not supported"
            )
        case Lark(text, field):
            return _lark_grammar(text, field)
        case Ebnf(text, field):
            return _lark_grammar(_ebnf_as_lark(text, field), field)


def _lark_grammar(text: str, field: str) -> str:
    grammar = LLMatcher.grammar_from_lark(text)
    return _checked(grammar, field, "the grammar is not supported")


def _ebnf_as_lark(text: str, field: str) -> str:
    try:
        return any_to_lark(text)
    except GbnfToLarkError as error:
        reason = reason_of(str(error))
        raise InvalidParameter(
            f"`{field}`: the grammar is not supported: {reason}", field=field
        ) from None
    except Exception:  # the converter meets some mistakes unprepared
        raise InvalidParameter(
            f"`{field}`: the grammar is neither GBNF nor Lark", field=field
        ) from None


def lark_string(text: str) -> str:
    """Quote a text as a Lark literal."""
    return json.dumps(text)


def regex_literal(text: str) -> str:
    """Write a regular expression that matches a text alone."""
    return re.sub(r"[^\w \n]", lambda match: f"\\x{{{ord(match[0]):x}}}", text)


def reason_of(message: str) -> str:
    """Shorten the library's message to its reason.

    The library appends its state and the generated grammar, of which the client knows nothing.
    """
    text = re.split(r"\n<(?:state|non-verbose)|\n +\d+ \| ", message)[0]
    text = " ".join(text.split())
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."


def _checked(grammar: str, field: str, subject: str) -> str:
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if is_wrong:
        raise InvalidParameter(f"`{field}`: {subject}: {reason_of(messages[0])}", field=field)
    return grammar
