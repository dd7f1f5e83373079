"""JSON Schemas as grammars: rewrites, checks and converts them; runs in grammar processes only.

llguidance enforces most draft 2020-12 keywords that describe an instance; others are rewritten
(container.grammar.schema). A schema with a keyword that neither can enforce (`uniqueItems`, ...) is
rejected with an error that names the keyword, never silently accepted.
"""

import json
from functools import cache
from typing import Any

from llguidance import LLMatcher

from container.errors import InvalidParameter
from container.grammar.schema.keywords import normalised
from container.grammar.schema.satisfiable import find_unsatisfiable
from container.grammar.schema.tree import (
    Schema,
    children,
    definitions_of,
    pointer,
    put,
    target,
)

# One space or a line break with indentation, as in typical JSON. Without a limit a model could
# spend its whole token budget on blanks.
WHITESPACE = r"( |\n {0,24}|\n\t{0,8})?"

_OPTIONS = "x-guidance"  # the key of llguidance's own options
# What a schema keeps where nothing else of it can be followed; a `type` that is none is an error.
_BARE = ("type", *("$defs", "definitions"))
# Native checks of one schema: enough to find the places of some faults, or to leave them out.
MAX_CHECKS = 3000


def grammar_of(schema: Schema, field: str, *, is_strict: bool = False) -> str:
    """Convert a schema to llguidance's grammar. Raises InvalidParameter; see `followed`."""
    return LLMatcher.grammar_from_json_schema(
        followed(schema, field, is_strict=is_strict), overrides={"whitespace_pattern": WHITESPACE}
    )


def followed(
    schema: Schema, field: str, *, is_strict: bool = False, is_lenient: bool = False
) -> Schema:
    """Return a schema as llguidance can enforce it.

    `is_strict`: objects have no undeclared keys. `is_lenient`: keywords that cannot be followed are
    left out. Raises InvalidParameter that names the keyword and its JSON pointer; if `is_lenient`,
    only for a `type` that does not exist, or where nothing at all could match.
    """
    checker = _Checker()
    result = normalised(
        schema, is_strict=is_strict, is_known_format=_is_known_format, is_lenient=is_lenient
    )
    problem = checker.problem(result)
    if problem is not None and is_lenient:
        result = checker.loosened(result, result)
        problem = checker.problem(result)
    if problem is not None:
        where, reason = checker.locate(result, "", problem, result, frozenset())
        raise _refusal(field, reason, where)
    unsatisfiable = find_unsatisfiable(result)
    if unsatisfiable is not None:
        raise _refusal(field, "nothing can match it", unsatisfiable)
    return result


def with_whitespace(schema: Schema) -> Schema:
    """Return the schema with this project's whitespace rule, for use inside a Lark grammar."""
    return schema | {_OPTIONS: schema.get(_OPTIONS, {}) | {"whitespace_pattern": WHITESPACE}}


def options_of(schema: Schema) -> Schema:
    """Return a schema's llguidance options, for a part of it that is compiled alone."""
    return {_OPTIONS: schema[_OPTIONS]} if _OPTIONS in schema else {}


def _refusal(field: str, reason: str, where: str) -> InvalidParameter:
    return InvalidParameter(
        f"`{field}`: the schema is not supported: {reason} (at {where[:300] or 'its top'})",
        field=field,
    )


class _Checker:
    """Finds the errors of llguidance in a schema and its parts; caches them."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def problem(self, schema: Any) -> str | None:
        """Return the error of llguidance for a schema; None if it takes the schema."""
        text = json.dumps(schema)
        if text not in self._known:
            if len(self._known) > MAX_CHECKS:
                raise InvalidParameter("the schema has too many parts that cannot be followed")
            self._known[text] = _problem_of(text)
        return self._known[text]

    def locate(
        self, schema: Schema, where: str, problem: str, root: Schema, visited: frozenset[str]
    ) -> tuple[str, str]:
        """Find the deepest part of a schema that is invalid alone; return its pointer and why.

        `visited` has the references followed so far, so that recursion in the schema ends.
        """
        definitions = definitions_of(root)
        for path, child in children(schema):
            child_problem = self.problem(definitions | child)
            reference = str(child.get("$ref"))
            if child_problem is None or reference in visited:
                continue
            referred = target(child, root)
            if isinstance(referred, dict):
                pointer_to_target = reference.removeprefix("#")
                return self.locate(
                    referred, pointer_to_target, child_problem, root, visited | {reference}
                )
            return self.locate(child, pointer(where, path), child_problem, root, visited)
        return where, problem

    def loosened(self, schema: Schema, root: Schema) -> Schema:
        """Leave out what cannot be followed, as little as possible."""
        result = dict(schema)
        definitions = {} if schema is root else definitions_of(root)
        for path, child in children(schema):
            if self.problem(definitions | child) is not None:
                looser = self.loosened(child, root)
                put(result, path, looser)
                if self.problem(definitions | looser) is not None:
                    return result
        if self.problem(definitions | result) is None:
            return result
        for key in result:
            shorter = {name: value for name, value in result.items() if name != key}
            if key not in _BARE and self.problem(definitions | shorter) is None:
                return shorter
        return {key: value for key, value in result.items() if key in _BARE}


def _problem_of(text: str) -> str | None:
    grammar = LLMatcher.grammar_from_json_schema(text)
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return _in_our_words(" ".join(messages[0].split())[:400]) if is_wrong else None


def _in_our_words(reason: str) -> str:
    """Replace what only users of the library understand."""
    if "coerce_one_of" in reason:
        return "`oneOf` has branches that may overlap"
    return reason.replace("Unimplemented keys", "unsupported keywords")


@cache
def _is_known_format(name: str) -> bool:
    grammar = LLMatcher.grammar_from_json_schema({"type": "string", "format": name})
    return not LLMatcher.validate_grammar_with_warnings(grammar)[0]
