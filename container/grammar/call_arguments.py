"""Writes the grammar of a call's arguments in each style of container.text.tool_calls."""

import json
import re
from collections.abc import Callable
from typing import Any

from llguidance import regex_to_lark

from container.grammar import json_schema
from container.grammar.argument_pairs import Pairs, alternatives_of
from container.grammar.schema.patterns import whole_text
from container.grammar.spec import lark_string
from container.text.tool_calls.syntax import KEY, ArgumentStyle, PairMarks, ToolFormat
from container.text.tool_calls.value_types import follow, types_of

Schema = dict[str, Any]
_FORMATS = {
    "date": r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z",
    "email": r"[a-z0-9.]{1,30}@[a-z0-9]{1,30}\.[a-z]{2,6}",
    "ipv4": r"(1?[0-9]{1,2}\.){3}1?[0-9]{1,2}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
_FORMATS["date-time"] = f"{_FORMATS['date']}T{_FORMATS['time']}"
MAX_DEPTH = 14  # in names of rules
# How no other JSON value begins; the rest of a string that could be taken for one.
_CLEARLY_TEXT = r"[^ \t\n\[{\"0-9tfnTFNI(-](.|\n)*"


class ArgumentRules:
    """Writes rules for arguments; `add` adds a rule, `literal` writes a fixed text.

    `until` writes any text up to and including a mark, given a name for the rule.
    """

    def __init__(
        self,
        form: ToolFormat,
        add: Callable[[str, str], None],
        literal: Callable[[str], str],
        until: Callable[[str, str], str],
    ) -> None:
        self._form = form
        self._add = add
        self._literal = literal
        self._until = until

    def write(self, schema: Schema, name: str) -> str:
        """Write the arguments of a tool; `name` begins the names of new rules."""
        if self._form.arguments is ArgumentStyle.JSON:
            return _json(schema)
        return self._object(schema, name)

    def _object(self, schema: Schema, name: str) -> str:
        options = json_schema.options_of(schema)
        forms = []
        for index, pairs in enumerate(alternatives_of(schema)):
            values = {key: options | value for key, value in pairs.values.items()}
            forms.append(self._pairs(Pairs(values, pairs.required), f"{name}_f{index}"))
        return forms[0] if len(forms) == 1 else f"({' | '.join(form or '()' for form in forms)})"

    def _pairs(self, pairs: Pairs, name: str) -> str:
        style, written = self._form.arguments, {}
        for index, (key, schema) in enumerate(pairs.values.items()):
            rule = f"{name}_{index}"
            if style is ArgumentStyle.XML:
                text = self._element(self._form.pairs, key, schema, rule)
            elif style is ArgumentStyle.GEMMA:
                text = f"{lark_string(key + ':')} {self._gemma_value(schema, f'{rule}_value')}"
            else:
                text = f"{lark_string(key + '=')} {_json(schema)}"
            self._add(rule, text)
            written[key] = rule
        if style is ArgumentStyle.XML and not self._form.pairs.separator:
            return " ".join(
                rule if key in pairs.required else f"{rule}?" for key, rule in written.items()
            )
        separators = {ArgumentStyle.PYTHON: ", ", ArgumentStyle.GEMMA: ","}
        return _separated(
            written, pairs.required, separators.get(style, self._form.pairs.separator)
        )

    # XML

    def _element(self, marks: PairMarks, key: str, schema: Schema, rule: str) -> str:
        end = marks.close.replace(KEY, key)
        begin = self._literal(marks.open + key)
        return f"{begin} {self._element_value(marks, schema, f'{rule}_text', end)}"

    def _element_value(self, marks: PairMarks, schema: Schema, rule: str, end: str) -> str:
        """Write the text between a key and its value, the value, and the text that ends it."""
        types = types_of(schema)
        others = sorted(types - {"string"})
        options = []
        if "string" in types:
            is_clear = marks.is_typed or set(others) <= {"null"}
            text = self._text(_part_of(schema, "string"), rule, end, is_clear=is_clear)
            options.append(f"{self._literal(marks.key_end('string'))} {text}")
        nests = marks.nests and not _is_deep(rule)
        if nests and types == {"object"} and _has_pairs(schema):
            inner = self._object(schema, rule)
            return f"{self._literal(marks.key_end('object'))} {inner} {self._literal(end)}"
        if nests and types == {"array"} and isinstance(_resolved(schema).get("items"), dict):
            return f"{self._items(marks, schema, rule)} {self._literal(end)}"
        for json_type in others if marks.is_typed else others[:1]:
            part = _part_of(schema, *([json_type] if marks.is_typed else others))
            begin = self._literal(marks.key_end(json_type))
            options.append(f"{begin} {_json(part)} {self._literal(end)}")
        return options[0] if len(options) == 1 else f"({' | '.join(options)})"

    def _items(self, marks: PairMarks, schema: Schema, rule: str) -> str:
        resolved, item = _resolved(schema), f"{rule}_item"
        items = _definitions(schema) | resolved["items"]
        self._add(item, self._element(marks, "item", items, item))
        least, most = resolved.get("minItems", 0), resolved.get("maxItems", "")
        repeated = "" if most == 0 else f"{item}{{{least},{most}}}"
        return f"{self._literal(marks.key_end('array'))} {repeated}"

    def _text(self, schema: Schema, rule: str, end: str, *, is_clear: bool = True) -> str:
        """Write unquoted text and the mark that ends it."""
        options = _options(schema)
        if options is not None:
            return f"({' | '.join(map(lark_string, options))}) {self._literal(end)}"
        terms = [] if is_clear else [f"/{_CLEARLY_TEXT}/"]
        if schema.get("format") in _FORMATS:
            terms.append(f"/{_FORMATS[schema['format']]}/")
        terms += [_pattern(part["pattern"]) for part in _parts(schema) if "pattern" in part]
        lengths = [part for part in _parts(schema) if "minLength" in part or "maxLength" in part]
        for part in lengths:
            terms.append(rf"/(.|\n){{{part.get('minLength', 0)},{part.get('maxLength', '')}}}/")
        if not terms:
            return self._until(rule, end)
        terms.append(rf"~/(.|\n)*{_escaped(end.strip())}(.|\n)*/")
        self._add(rule.upper(), " & ".join(terms))
        return f"{rule.upper()} {self._literal(end)}"

    # Gemma

    def _gemma_value(self, schema: Schema, name: str) -> str:
        types, quote = types_of(schema), self._literal(self._form.quote)
        options = []
        if "string" in types:
            text = self._text(_part_of(schema, "string"), f"{name}_text", self._form.quote)
            options.append(f"{quote} {text}")
        resolved = _resolved(schema)
        if _is_deep(name):
            return _json(schema)
        if types == {"object"} and _has_pairs(schema):
            return f'"{{" {self._object(schema, name)} "}}"'
        if types == {"array"} and isinstance(resolved.get("items"), dict):
            item = self._gemma_value(_definitions(schema) | resolved["items"], f"{name}_item")
            return _repeated(item, resolved.get("minItems", 0), resolved.get("maxItems"))
        others = types & {"number", "boolean", "null"} or types - {"string"}
        if others:
            options.append(_json(_part_of(schema, *sorted(others))))
        return options[0] if len(options) == 1 else f"({' | '.join(options)})"


def _is_deep(rule: str) -> bool:
    """Whether a value is so deep in others, perhaps of a recursive schema, that it stays JSON."""
    return rule.count("_") > MAX_DEPTH


def _json(schema: Schema) -> str:
    return f"%json {json.dumps(schema)}"


def _separated(rules: dict[str, str], required: list[str], separator: str) -> str:
    """Write pairs in the schema's order; those that are not required are optional."""
    keys, comma = list(rules), lark_string(separator)
    starts = []
    for index, key in enumerate(keys):
        rest = " ".join(
            f"{comma} {rules[later]}" if later in required else f"({comma} {rules[later]})?"
            for later in keys[index + 1 :]
        )
        starts.append(f"{rules[key]} {rest}")
        if key in required:
            break
    text = " | ".join(starts)
    if any(key in required for key in keys):
        return f"({text})"
    return f"({text})?" if text else ""


def _repeated(item: str, least: int, most: int | None) -> str:
    if most == 0:
        return '"[" "]"'
    limit = "" if most is None else most - 1
    more = "" if limit == 0 else f'("," {item}){{{max(least - 1, 0)},{limit}}}'
    return f'"[" {item} {more} "]"' if least else f'"[" ({item} {more})? "]"'


def _part_of(schema: Schema, *types: str) -> Schema:
    """Return a schema that allows these types only; exact where the schema names its own."""
    if types_of(schema) == set(types):
        return schema
    names = list(types)
    if "integer" in _named_types(schema) and "number" not in _named_types(schema):
        names = ["integer" if name == "number" else name for name in names]
    return {
        "allOf": [schema, {"type": names}],
        **_definitions(schema),
        **json_schema.options_of(schema),
    }


def _named_types(schema: Schema) -> list[str]:
    names = schema.get("type", [])
    return names if isinstance(names, list) else [names]


def _definitions(schema: Schema) -> Schema:
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def _resolved(schema: Schema) -> Schema:
    """Follow references at the top of a schema."""
    return _definitions(schema) | follow(schema, schema)


def _has_pairs(schema: Schema) -> bool:
    return any(pairs.values for pairs in alternatives_of(schema))


def _parts(schema: Schema) -> list[Schema]:
    """Return the schemas that a value must all fulfil, as far as they are written out."""
    resolved = _resolved(schema)
    parts = [resolved]
    for part in resolved.get("allOf", ()):
        parts += _parts(_definitions(resolved) | part) if isinstance(part, dict) else []
    for key in ("anyOf", "oneOf"):
        strings = [part for part in resolved.get(key, ()) if "string" in types_of(part, resolved)]
        parts += _parts(_definitions(resolved) | strings[0]) if strings else []
    return parts


def _options(schema: Schema) -> list[str] | None:
    """Return the strings of `enum` or `const`; None if the schema has neither."""
    for part in _parts(schema):
        options = part.get("enum", [part["const"]] if "const" in part else None)
        if options is not None:
            return [option for option in options if isinstance(option, str)]
    return None


def _pattern(pattern: str) -> str:
    return f"/{regex_to_lark(whole_text(pattern), 'dw')}/"


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
