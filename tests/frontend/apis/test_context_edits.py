"""Old thoughts and old results of tools are cleared, as Anthropic defines it."""

from typing import Any

import pytest

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.apis.anthropic.context_edits import (
    CLEARED,
    ContextManagement,
    EditedContext,
    Turn,
    edit_context,
)
from container.frontend.web.request_body import parse

NUM_TURNS = 5


def _turns() -> list[Turn]:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
    for index in range(NUM_TURNS):
        name = "search" if index % 2 else "read"
        use = {"type": "tool_use", "id": f"t{index}", "name": name, "input": {"x": "long " * 9}}
        thought = {"type": "thinking", "thinking": f"hm {index}", "signature": "s"}
        result = {"type": "tool_result", "tool_use_id": f"t{index}", "content": "word " * 50}
        turns += [
            {"role": "assistant", "content": [thought, use]},
            {"role": "user", "content": [result]},
        ]
    return [parse(Turn, turn) for turn in turns]


def _count(messages: list[Turn]) -> int:
    return sum(len(str(turn.content)) for turn in messages)


def _edited(*edits: dict[str, Any]) -> EditedContext:
    management = parse(ContextManagement, {"edits": [*edits]})
    return edit_context(_turns(), management, _count)


def _left(context: EditedContext, kind: str) -> list[dict[str, Any]]:
    return [block for turn in context.messages for block in turn.blocks if block["type"] == kind]


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ({}, 1),
        ({"keep": "all"}, NUM_TURNS),
        ({"keep": {"type": "all"}}, NUM_TURNS),
        ({"keep": {"type": "thinking_turns", "value": 2}}, 2),
        ({"keep": {"type": "thinking_turns", "value": 9}}, NUM_TURNS),
    ],
)
def test_the_last_turns_keep_their_thoughts(keep: dict[str, Any], left: int) -> None:
    context = _edited({"type": "clear_thinking_20251015"} | keep)
    thoughts = _left(context, "thinking")
    assert [t["thinking"] for t in thoughts] == [f"hm {i}" for i in range(NUM_TURNS)][-left:]
    assert len(_left(context, "tool_use")) == NUM_TURNS
    reports = [(report["type"], report["cleared_thinking_turns"]) for report in context.applied]
    assert reports == ([("clear_thinking_20251015", NUM_TURNS - left)] if left < NUM_TURNS else [])


TOOLS = {"type": "clear_tool_uses_20250919"}
ALWAYS = TOOLS | {"trigger": {"type": "tool_uses", "value": 1}}


def test_old_results_are_cleared_and_their_inputs_on_request() -> None:
    context = _edited(ALWAYS | {"keep": {"type": "tool_uses", "value": 2}})
    assert [r["content"] == CLEARED for r in _left(context, "tool_result")] == [True] * 3 + [
        False
    ] * 2
    assert all(use["input"] for use in _left(context, "tool_use"))
    [report] = context.applied
    assert report["cleared_tool_uses"] == 3
    assert report["cleared_input_tokens"] == _count(_turns()) - _count(context.messages)
    assert context.original_tokens == _count(_turns())
    cleared = _edited(
        ALWAYS | {"keep": {"type": "tool_uses", "value": 2}, "clear_tool_inputs": True}
    )
    assert [bool(use["input"]) for use in _left(cleared, "tool_use")] == [False] * 3 + [True] * 2
    partly_cleared = _edited(
        ALWAYS | {"keep": {"type": "tool_uses", "value": 0}, "clear_tool_inputs": ["read"]}
    )
    assert [bool(u["input"]) for u in _left(partly_cleared, "tool_use")] == [
        False,
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("keep", [NUM_TURNS, NUM_TURNS + 1, 2 * NUM_TURNS])
def test_no_result_is_cleared_within_the_kept_number(keep: int) -> None:
    context = _edited(ALWAYS | {"keep": {"type": "tool_uses", "value": keep}})
    assert context.applied == []
    assert all(r["content"] != CLEARED for r in _left(context, "tool_result"))


def test_named_tools_keep_their_results() -> None:
    context = _edited(
        ALWAYS | {"keep": {"type": "tool_uses", "value": 0}, "exclude_tools": ["read"]}
    )
    assert [r["content"] == CLEARED for r in _left(context, "tool_result")] == [
        False, True, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "is_edited"),
    [
        ({}, False),  # a hundred thousand tokens
        ({"trigger": {"type": "input_tokens", "value": 10}}, True),
        ({"trigger": {"type": "tool_uses", "value": 5}}, False),
        ({"trigger": {"type": "tool_uses", "value": 4}}, True),
        ({"trigger": {"type": "tool_uses", "value": 4},
          "clear_at_least": {"type": "input_tokens", "value": 99999}}, False),
    ],
)  # fmt: skip
def test_edits_wait_for_their_trigger(fields: dict[str, Any], is_edited: bool) -> None:
    context = _edited(TOOLS | fields)
    assert bool(context.applied) == is_edited
    assert (context.messages == _turns()) != is_edited


def test_edits_follow_each_other() -> None:
    context = _edited({"type": "clear_thinking_20251015"}, ALWAYS)
    assert [report["type"] for report in context.applied] == [
        "clear_thinking_20251015", "clear_tool_uses_20250919",
    ]  # fmt: skip
    assert context.original_tokens == _count(_turns())


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        ({"type": "compact_20260112"}, "edits[0].type"),
        ({"type": "clear_thinking_20251015", "keep": "some"}, "edits[0].keep"),
        ({"type": "clear_thinking_20251015", "keep": {"type": "tool_uses", "value": 1}}, "keep"),
        (TOOLS | {"keep": "all"}, "edits[0].keep"),
        (TOOLS | {"trigger": {"type": "days", "value": 1}}, "edits[0].trigger"),
        (TOOLS | {"keep": {"type": "tool_uses"}}, "edits[0].keep"),
        (TOOLS | {"trigger": {"type": "tool_uses"}}, "edits[0].trigger"),
        (TOOLS | {"clear_at_least": {"type": "tool_uses", "value": 1}}, "clear_at_least"),
        ({"type": "clear_thinking_20251015", "exclude_tools": ["a"]}, "edits[0].exclude_tools"),
        (
            {"type": "clear_thinking_20251015", "trigger": {"type": "tool_uses", "value": 1}},
            "edits[0].trigger",
        ),
    ],
)
def test_other_edits_are_refused_by_name(edit: dict[str, Any], field: str) -> None:
    with pytest.raises((InvalidParameter, UnsupportedParameter)) as refused:
        _edited(edit)
    assert (refused.value.field or "").endswith(field)


@pytest.mark.parametrize("odd", [[1], {}, None, 7])
def test_wrong_types_of_ids_and_names_pass_unchanged(odd: Any) -> None:
    blocks = [
        {"type": "tool_use", "id": odd, "name": "read", "input": {}},
        {"type": "tool_use", "id": "t0", "name": odd, "input": {}},
        {"type": "tool_result", "tool_use_id": odd, "content": "x"},
        {"type": "tool_result", "tool_use_id": "t0", "content": "x"},
    ]
    turns = [parse(Turn, {"role": "assistant", "content": blocks})]
    edit = ALWAYS | {"exclude_tools": ["search"], "keep": {"type": "tool_uses", "value": 0}}
    context = edit_context(turns, parse(ContextManagement, {"edits": [edit]}), _count)
    assert [block["content"] for block in _left(context, "tool_result")] == ["x", CLEARED]


def test_edits_are_few() -> None:
    with pytest.raises(InvalidParameter, match="at most 8 edits"):
        _edited(*[ALWAYS] * 9)
