"""Names the pattern that makes a grammar too complex; pure Python."""

from container.grammar.forms import JsonSchema, Regex
from container.grammar.schema.tree import Schema, children, pointer
from container.grammar.shape import MessageShape


def complexity_hint(shape: MessageShape) -> tuple[str, str | None]:
    """Name the pattern that most likely made a grammar too complex, and the request's field."""
    answer = shape.answer
    field = None if answer is None else answer.field
    if isinstance(answer, Regex):
        return f": the regex of `{field}` is too complex; repeat less inside of repetitions", field
    places = []
    if isinstance(answer, JsonSchema):
        places += [(place, field) for place in _patterns(answer.schema, "")]
    for index, tool in enumerate(shape.tools):
        name = f"tools[{index}].function.parameters"
        places += [(place, name) for place in _patterns(tool.parameters, "")]
    if not places:
        return ": it is too complex; make it smaller", field
    (pattern, place), field = max(places, key=lambda entry: len(entry[0][0]))
    shown = pattern if len(pattern) <= 100 else f"{pattern[:100]}..."
    return (
        f": `{field}` has the pattern {shown!r} (at {place}), which is too complex; repeat less "
        "inside of repetitions",
        field,
    )


def _patterns(schema: Schema, where: str) -> list[tuple[str, str]]:
    own = schema.get("pattern")
    found = [(own, where or "its top")] if isinstance(own, str) else []
    for path, child in children(schema):
        found += _patterns(child, pointer(where, path))
    return found
