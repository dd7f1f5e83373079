"""`grammar` of TGI's generate API and `response_format` of OpenAI's, in all their forms.

TGI (docs/source/conceptual/guidance.md, router/src/lib.rs): `{"type", "value"}` with `json`, its
aliases `json_object` and `json_schema`, and `regex`. OpenAI: `json_schema` with its schema under
that name, a bare `json_object`, and `text`. This project's own: `choice` and `lark`.
"""

from collections.abc import Callable
from typing import Any

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.generation.limits import RequestLimits
from container.grammar import forms
from container.grammar.forms import Answer

Form = dict[str, Any]


def read_grammar(form: Form | None, field: str, limits: RequestLimits) -> Answer | None:
    """Read a grammar object; None where anything goes. The engine checks what is in it.

    Raises InvalidParameter, or UnsupportedParameter where grammars are switched off.
    """
    if form is None or form.get("type") == "text":
        return None
    _check_offered(field, limits)
    kind = form.get("type")
    read = _FORMS.get(kind) if isinstance(kind, str) else None
    if read is None:
        known = ", ".join(f"'{name}'" for name in ("text", *_FORMS))
        raise InvalidParameter(f"`{field}.type` must be one of {known}", field=f"{field}.type")
    return read(form, field)


def read_value(kind: str, value: Any, field: str, limits: RequestLimits) -> Answer:
    """Read a grammar that is the value of a field: json, regex, choice, grammar or json_object.

    Raises InvalidParameter, or UnsupportedParameter where grammars are switched off.
    """
    _check_offered(field, limits)
    types, read = _VALUES[kind]
    if not isinstance(value, types):
        raise InvalidParameter(f"`{field}` must be {_type_names(types)}", field=field)
    return read(value, field)


def _check_offered(field: str, limits: RequestLimits) -> None:
    if not limits.grammars:
        raise UnsupportedParameter(
            f"`{field}`: grammar is not supported (DISABLE_GRAMMAR_SUPPORT is set)", field=field
        )


def _any_object(_: object, field: str) -> Answer:
    return forms.schema_answer(forms.ANY_OBJECT, field)


def _json(form: Form, field: str) -> Answer:
    """TGI's forms need a value; OpenAI's `json_object` is any object."""
    if form["type"] == "json_object" and form.get("value") is None:
        return forms.schema_answer(forms.ANY_OBJECT, field)
    return _tgi_schema(_value(form, field, (dict, str)), f"{field}.value")


def _json_schema(form: Form, field: str) -> Answer:
    """OpenAI's has `json_schema`; TGI's has `value`, with the schema inside or bare."""
    key = "json_schema" if "json_schema" in form else "value"
    inner = form.get(key)
    if not isinstance(inner, dict):
        raise InvalidParameter(
            f"`{field}.{key}` must be an object with a `schema`", field=f"{field}.{key}"
        )
    if "schema" in inner:
        name = f"{field}.{key}.schema"
        if key == "value":
            return _tgi_schema(inner["schema"], name)
        return forms.schema_answer(inner["schema"], name, is_strict=inner.get("strict") is True)
    if key == "json_schema":
        raise InvalidParameter(
            f"`{field}.json_schema.schema` is missing", field=f"{field}.json_schema.schema"
        )
    return _tgi_schema(inner, f"{field}.value")


def _tgi_schema(schema: object, field: str) -> Answer:
    """TGI's server writes declared keys only, and takes `properties` alone for an object."""
    return forms.schema_answer(schema, field, means_object=True, is_strict=True)


def _regex(form: Form, field: str) -> Answer:
    return forms.regex_answer(_value(form, field, (str,)), f"{field}.value")


def _lark(form: Form, field: str) -> Answer:
    return forms.lark_answer(_value(form, field, (str,)), f"{field}.value")


def _choice(form: Form, field: str) -> Answer:
    options = _value(form, field, (list,))
    if not all(isinstance(option, str) for option in options):
        raise InvalidParameter(f"`{field}.value` must be a list of strings", field=f"{field}.value")
    return forms.choice_answer(options, f"{field}.value")


def _value(form: Form, field: str, types: tuple[type, ...]) -> Any:
    value = form.get("value")
    if isinstance(value, types):
        return value
    expected = _type_names(types)
    actual = "missing" if value is None else f"a {type(value).__name__}"
    raise InvalidParameter(
        f"`{field}.value` must be {expected}; it is {actual}", field=f"{field}.value"
    )


def _type_names(types: tuple[type, ...]) -> str:
    names: dict[type, str] = {
        dict: "an object", str: "a string", list: "a list of strings", bool: "a boolean",
    }  # fmt: skip
    return " or ".join(names[kind] for kind in types)


_FORMS: dict[str, Callable[[Form, str], Answer]] = {
    "json": _json,
    "json_object": _json,
    "json_schema": _json_schema,
    "regex": _regex,
    "choice": _choice,
    "lark": _lark,
}
_VALUES: dict[str, tuple[tuple[type, ...], Callable[[Any, str], Answer]]] = {
    "json": ((dict, str), forms.schema_answer),
    "json_object": ((bool,), _any_object),
    "regex": ((str,), forms.regex_answer),
    "choice": ((list,), forms.choice_answer),
    "grammar": ((str,), forms.ebnf_answer),
}
