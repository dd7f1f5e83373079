"""Finds the part of a JSON Schema for which no value is valid; pure Python."""

from typing import Any

from container.grammar.schema.tree import Schema, target


def find_unsatisfiable(schema: Schema) -> str | None:
    """Return the JSON pointer of a part without which a schema has no finite value, or None.

    An object that must contain itself has none; nor has an empty `enum`.
    """
    return _Search(schema).find(schema, "", frozenset())


class _Search:
    """One search; remembers the schemas that have a value."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._has_value: set[int] = set()

    def find(self, schema: Any, where: str, visiting: frozenset[int]) -> str | None:
        if schema is False:
            return where
        if not isinstance(schema, dict) or id(schema) in self._has_value:
            return None
        if id(schema) in visiting:
            return where
        pointer = self._find(schema, where, visiting | {id(schema)})
        if pointer is None:
            self._has_value.add(id(schema))
        return pointer

    def _find(self, schema: Schema, where: str, visiting: frozenset[int]) -> str | None:
        if schema.get("enum") == []:
            return where
        referred = target(schema, self._root)
        if referred is not None and self.find(referred, where, visiting) is not None:
            return where
        parts = schema.get("allOf")
        for index, part in enumerate(parts if isinstance(parts, list) else []):
            pointer = self.find(part, f"{where}/allOf/{index}", visiting)
            if pointer is not None:
                return pointer
        for key in ("anyOf", "oneOf"):
            options = schema.get(key)
            if isinstance(options, list) and options:
                pointers = [
                    self.find(option, f"{where}/{key}/{index}", visiting)
                    for index, option in enumerate(options)
                ]
                if None not in pointers:
                    return pointers[0]
        if schema.get("type") == "object":
            return self._find_in_object(schema, where, visiting)
        has_items = schema.get("type") == "array" and (schema.get("minItems") or 0) > 0
        if has_items and "prefixItems" not in schema:
            return self.find(schema.get("items", True), f"{where}/items", visiting)
        return None

    def _find_in_object(self, schema: Schema, where: str, visiting: frozenset[int]) -> str | None:
        properties, required = schema.get("properties"), schema.get("required")
        if not isinstance(properties, dict) or not isinstance(required, list):
            return None
        for name in required:
            child = properties.get(name, True)
            pointer = self.find(child, f"{where}/properties/{name}", visiting)
            if pointer is not None:
                return pointer
        return None
