"""Context editing of Anthropic's API: clears old thoughts and tool results before rendering.

Each edit changes the messages of the request, so the client's own history stays whole.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.web.request_body import Body, Items

Block = dict[str, Any]
CLEAR_THINKING = "clear_thinking_20251015"
CLEAR_TOOL_USES = "clear_tool_uses_20250919"
CLEARED = "[This result has been cleared to save context.]"
THOUGHTS = ("thinking", "redacted_thinking")
# Each edit counts the tokens of the prompt, up to three times.
MAX_EDITS = 8


class Amount(Body):
    """A number of turns, tool uses or tokens; `all` has no number."""

    type: str
    value: int | None = Field(default=None, ge=0)


# The fields that only edits of tool uses have.
OF_TOOL_USES = ("trigger", "clear_at_least", "clear_tool_inputs", "exclude_tools")
# Anthropic's own defaults.
KEEP_TURNS, KEEP_USES, TRIGGER_TOKENS = 1, 3, 100_000


class Edit(Body):
    """One edit; its `type` decides which of the fields it has."""

    type: str
    keep: str | Amount | None = None
    trigger: Amount | None = None
    clear_at_least: Amount | None = None
    clear_tool_inputs: bool | Items[str] | None = None
    exclude_tools: Items[str] | None = None


class ContextManagement(Body):
    """The edits of a request, in their order."""

    edits: Items[Edit] | None = None


class Turn(Body):
    """A message of a conversation."""

    role: str
    content: str | Items[Block]

    @property
    def blocks(self) -> list[Block]:
        """The blocks of the content; a text has none that an edit could clear."""
        return [] if isinstance(self.content, str) else self.content


Turns = list[Turn]


@dataclass(frozen=True, slots=True)
class EditedContext:
    """Messages after the edits, and what each edit that changed them has cleared.

    `original_tokens` is the length of the prompt before, None if nothing was changed.
    """

    messages: Turns
    applied: list[dict[str, Any]] = field(default_factory=list)
    original_tokens: int | None = None


def edit_context(
    messages: Turns, management: ContextManagement, count: Callable[[Turns], int]
) -> EditedContext:
    """Apply the edits; `count` is the length of a prompt in tokens.

    Raises InvalidParameter, or UnsupportedParameter for an edit that is not offered.
    """
    context = EditedContext(messages)
    edits = management.edits or []
    if len(edits) > MAX_EDITS:
        raise InvalidParameter(
            f"`context_management.edits` must have at most {MAX_EDITS} edits. Given: {len(edits)}",
            field="context_management.edits",
        )
    for index, edit in enumerate(edits):
        context = _apply(edit, f"context_management.edits[{index}]", context, count)
    return context


def _apply(
    edit: Edit, where: str, context: EditedContext, count: Callable[[Turns], int]
) -> EditedContext:
    if edit.type not in (CLEAR_THINKING, CLEAR_TOOL_USES):
        raise UnsupportedParameter(
            f"`{where}.type`: edits of type {edit.type[:60]!r} are not supported by this server; "
            f"`{CLEAR_THINKING}` and `{CLEAR_TOOL_USES}` are",
            field=f"{where}.type",
        )
    least = _number(edit.clear_at_least, ("input_tokens",), f"{where}.clear_at_least", 0)
    if edit.type == CLEAR_THINKING:
        edited, number = _without_thoughts(context.messages, _num_turns_to_keep(edit, where))
        report = {"type": edit.type, "cleared_thinking_turns": number}
    else:
        edited, number = _without_results(edit, where, context.messages, count)
        report = {"type": edit.type, "cleared_tool_uses": number}
    if not number:
        return context
    before = count(context.messages)
    cleared = before - count(edited)
    if edit.clear_at_least is not None and cleared < least:
        return context
    original = before if context.original_tokens is None else context.original_tokens
    applied = [*context.applied, report | {"cleared_input_tokens": max(0, cleared)}]
    return replace(context, messages=edited, applied=applied, original_tokens=original)


def _number(amount: str | Amount | None, types: tuple[str, ...], where: str, default: int) -> int:
    """Return an amount's number. Raises InvalidParameter for another type, or none at all."""
    if amount is None:
        return default
    if isinstance(amount, str) or amount.type not in types or amount.value is None:
        named = " or ".join(f"'{name}'" for name in types)
        raise InvalidParameter(f"`{where}` must be of type {named} and have a `value`", field=where)
    return amount.value


def _num_turns_to_keep(edit: Edit, where: str) -> int | None:
    """Return how many turns keep their thoughts, None for all."""
    for name in OF_TOOL_USES:
        if getattr(edit, name) is not None:
            raise InvalidParameter(
                f"`{where}.{name}` is a field of `{CLEAR_TOOL_USES}`, not of `{CLEAR_THINKING}`",
                field=f"{where}.{name}",
            )
    keep = edit.keep
    if keep == "all" or (isinstance(keep, Amount) and keep.type == "all"):
        return None
    turns = _number(keep, ("thinking_turns",), f"{where}.keep", KEEP_TURNS)
    if turns < 1:
        raise InvalidParameter(f"`{where}.keep` must be at least 1 turn", field=f"{where}.keep")
    return turns


def _without_thoughts(messages: Turns, kept: int | None) -> tuple[Turns, int]:
    """Leave the thoughts of all turns but the last ones out; return how many turns had some."""
    thinking = [
        index
        for index, turn in enumerate(messages)
        if turn.role == "assistant" and any(block.get("type") in THOUGHTS for block in turn.blocks)
    ]
    cleared = set() if kept is None else set(thinking[:-kept])
    edited = [
        _with_blocks(turn, [b for b in turn.blocks if b.get("type") not in THOUGHTS])
        if index in cleared
        else turn
        for index, turn in enumerate(messages)
    ]
    return edited, len(cleared)


def _without_results(
    edit: Edit, where: str, messages: Turns, count: Callable[[Turns], int]
) -> tuple[Turns, int]:
    """Clear the results of all tool uses but the last ones, if there is enough of them."""
    keep = _number(edit.keep, ("tool_uses",), f"{where}.keep", KEEP_USES)
    trigger = _number(
        edit.trigger, ("input_tokens", "tool_uses"), f"{where}.trigger", TRIGGER_TOKENS
    )
    names = {_id(use, "id"): _id(use, "name") for use in _blocks(messages, "tool_use")}
    done = [_id(result, "tool_use_id") for result in _blocks(messages, "tool_result")]
    old = done[: max(0, len(done) - keep)]
    excluded = frozenset(edit.exclude_tools or ())
    ids = {id_ for id_ in old if id_ and id_ in names and names[id_] not in excluded}
    is_over = bool(ids) and (
        len(names) > trigger
        if edit.trigger is not None and edit.trigger.type == "tool_uses"
        else count(messages) > trigger
    )
    if not is_over:
        return messages, 0
    inputs = edit.clear_tool_inputs
    named = inputs if isinstance(inputs, bool) else frozenset(inputs or ())
    return [_cleared(turn, ids, named) for turn in messages], len(ids)


def _cleared(turn: Turn, ids: set[str], inputs: bool | frozenset[str]) -> Turn:
    """Clear the results of the tool uses `ids` in a turn, and their inputs where requested."""

    def clear(block: Block) -> Block:
        if block.get("type") == "tool_result" and _id(block, "tool_use_id") in ids:
            return block | {"content": CLEARED}
        if block.get("type") != "tool_use" or _id(block, "id") not in ids:
            return block
        named = inputs if isinstance(inputs, bool) else _id(block, "name") in inputs
        return block | {"input": {}} if named else block

    return _with_blocks(turn, [clear(block) for block in turn.blocks]) if turn.blocks else turn


def _with_blocks(turn: Turn, blocks: list[Block]) -> Turn:
    """Return the turn with other blocks; an empty one has an empty text."""
    return turn.model_copy(update={"content": blocks or ""})


def _blocks(messages: Turns, kind: str) -> Iterator[Block]:
    for turn in messages:
        yield from (block for block in turn.blocks if block.get("type") == kind)


def _id(block: Block, key: str) -> str:
    """Return the id or name of a tool use; "" for one that is no text, which is refused later."""
    value = block.get(key)
    return value if isinstance(value, str) else ""
