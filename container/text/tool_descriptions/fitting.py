"""Fits tools into a chat template: the fewest changes with which it loses no name of them."""

import hashlib
import json
import time
from collections import OrderedDict
from typing import Any

from container.text.tool_calls.probes import USER, Render
from container.text.tool_descriptions.placement import Message, Placement
from container.text.tool_descriptions.schemas import REMEDIES, Remedy, Schema, inline_refs, mapped

Tools = list[dict[str, Any]]
MAX_KEPT = 64  # lists of tools
MAX_NAMES = 2000
MAX_PROBING_S = 5.0


class ToolFitter:
    """Rewrites the descriptions of tools for one template, which it tries with sentinels.

    Safe to share between requests: the same tools may be tried twice, with one result.
    """

    def __init__(self, render: Render, placement: Placement) -> None:
        self._render = render
        self._placement = placement
        self._fitted: OrderedDict[tuple[bytes, bool], Tools | None] = OrderedDict()

    def fit(self, messages: list[Message], tools: Tools) -> tuple[list[Message], Tools] | None:
        """Return messages and the variable `tools`; None if the template takes them in no form."""
        has_system = messages[0]["role"] == "system"
        key = (hashlib.sha256(json.dumps(tools).encode()).digest(), has_system)
        if key not in self._fitted:
            self._fitted[key] = self._choose(tools, has_system=has_system)
            if len(self._fitted) > MAX_KEPT:
                self._fitted.popitem(last=False)
        fitted = self._fitted[key]
        if fitted is None:
            return None
        placed, variable = self._placement.place(messages, fitted)
        return placed, list(variable)

    def _choose(self, tools: Tools, *, has_system: bool) -> Tools | None:
        sentinels, texts, names = _with_sentinels(tools)
        deadline = time.monotonic() + MAX_PROBING_S
        chosen: list[Remedy] = []
        lost = self._lost(sentinels, texts, has_system=has_system)
        for remedy in REMEDIES:
            if lost == [] or time.monotonic() > deadline:
                break
            candidate = [*chosen, remedy]
            new = self._lost(_apply(candidate, sentinels), texts, has_system=has_system)
            # A refusal does not name its reason: continue with all remedies tried so far.
            if lost is None or (new is not None and len(new) < len(lost)):
                chosen, lost = candidate, new
        if lost:  # two together may do what neither does alone
            new = self._lost(_apply(REMEDIES, sentinels), texts, has_system=has_system)
            if new is not None and len(new) < len(lost):
                chosen, lost = REMEDIES, new
        if lost is None or any(name in lost for name in names):
            return None
        return _apply(chosen, tools)

    def _lost(self, tools: Tools, texts: list[str], *, has_system: bool) -> list[str] | None:
        """Return the sentinels that a rendering lacks; None if the template refuses the tools."""
        messages: list[Message] = [{"role": "system", "content": "zqsystem"}] if has_system else []
        placed, variable = self._placement.place(
            [*messages, {"role": "user", "content": USER}], tools
        )
        try:
            rendered = self._render(placed, variable, opens_reply=True)
        except Exception:  # a template can raise anything
            return None
        return [text for text in texts if text not in rendered]


def _with_sentinels(tools: Tools) -> tuple[Tools, list[str], list[str]]:
    """Rename functions and properties; return the tools, all new names, and those of functions."""
    renamed, functions, texts = [], [], []
    for index, tool in enumerate(tools):
        name = f"zqf{index}z"
        parameters = tool["function"].get("parameters") or {}
        naming = _Naming(f"zqf{index}")
        changed = naming.rename(parameters)
        renamed.append(
            tool | {"function": tool["function"] | {"name": name, "parameters": changed}}
        )
        functions.append(name)
        texts += [name, *_property_names(inline_refs(changed))]
    return renamed, texts[:MAX_NAMES], functions


class _Naming:
    """Renames properties, the same name always to the same sentinel."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._names: dict[str, str] = {}

    def rename(self, schema: Schema) -> Schema:
        return mapped(schema, self._renamed)

    def _renamed(self, schema: Schema) -> Schema:
        changed = dict(schema)
        if isinstance(properties := schema.get("properties"), dict):
            changed["properties"] = {self._name(key): value for key, value in properties.items()}
        if isinstance(required := schema.get("required"), list):
            changed["required"] = [self._name(key) for key in required]
        return changed

    def _name(self, name: Any) -> str:
        return self._names.setdefault(str(name), f"{self._prefix}p{len(self._names)}z")


def _property_names(schema: Schema) -> list[str]:
    """Return the names of all properties, those in definitions that are not inlined aside."""
    names: list[str] = []

    def take(node: Schema) -> Schema:
        if isinstance(properties := node.get("properties"), dict):
            names.extend(properties)
        return node

    mapped(
        {key: value for key, value in schema.items() if key not in ("$defs", "definitions")}, take
    )
    return names


def _apply(remedies: list[Remedy], tools: Tools) -> Tools:
    changed = []
    for tool in tools:
        function = tool["function"]
        parameters = function.get("parameters") or {}
        for remedy in remedies:
            parameters = remedy(parameters)
        changed.append(tool | {"function": function | {"parameters": parameters}})
    return changed if remedies else tools
