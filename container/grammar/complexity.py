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
    patterns: list[tuple[str, str, str | None]] = []
    if isinstance(answer, JsonSchema):
        patterns += [(*entry, field) for entry in _patterns(answer.schema, "")]
    for index, tool in enumerate(shape.tools):
        name = f"tools[{index}].function.parameters"
        patterns += [(*entry, name) for entry in _patterns(tool.parameters, "")]
    if not patterns:
        return ": it is too complex; make it smaller", field
    pattern, where, field = max(patterns, key=lambda entry: len(entry[0]))
    shown = pattern if len(pattern) <= 100 else f"{pattern[:100]}..."
    return (
        f": `{field}` has the pattern {shown!r} (at {where}), which is too complex; repeat less "
        "inside of repetitions",
        field,
    )


def _patterns(schema: Schema, where: str) -> list[tuple[str, str]]:
    """Return the patterns in a schema, each with its JSON pointer."""
    own = schema.get("pattern")
    patterns = [(own, where or "its top")] if isinstance(own, str) else []
    for path, child in children(schema):
        patterns += _patterns(child, pointer(where, path))
    return patterns
