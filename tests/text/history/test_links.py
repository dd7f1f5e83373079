"""Results are connected with their calls, however many there are."""

import time
from typing import Any

import pytest

from container.text.history.links import linked

NUM_CALLS = 20_000


def _call(call_id: str | None) -> dict[str, Any]:
    own = {} if call_id is None else {"id": call_id}
    return own | {"type": "function", "function": {"name": f"f{call_id}", "arguments": {}}}


@pytest.mark.parametrize("has_ids", [True, False])
def test_many_results_find_their_calls_in_a_time_linear_in_them(has_ids: bool) -> None:
    ids = [f"c{number}" if has_ids else None for number in range(NUM_CALLS)]
    asking = {"role": "assistant", "content": "", "tool_calls": [_call(each) for each in ids]}
    results: list[dict[str, Any]] = [
        {"role": "tool", "content": "r"} | ({} if each is None else {"tool_call_id": each})
        for each in reversed(ids)
    ]
    started = time.monotonic()
    _, *answers = linked([asking, *results])
    assert time.monotonic() - started < 5
    expected = [f"c{number}" for number in reversed(range(NUM_CALLS))]
    if not has_ids:
        expected = [f"call_{number}" for number in range(NUM_CALLS)]
    assert [answer["tool_call_id"] for answer in answers] == expected


def test_a_result_without_an_id_answers_the_first_such_call() -> None:
    asking = {"role": "assistant", "content": "", "tool_calls": [_call("a"), _call("b")]}
    results = [
        {"role": "tool", "content": "r", "tool_call_id": "a"},
        {"role": "tool", "content": ""},
    ]
    _, first, second = linked([asking, *results])
    assert (first["name"], second["tool_call_id"], second["name"]) == ("fa", "b", "fb")
