"""Grammar processes: a client's grammar can end itself at most."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from container.errors import InvalidParameter, Unavailable
from container.grammar.client import GrammarClient, GrammarServerFailed
from container.grammar.forms import choice_answer, lark_answer, regex_answer, schema_answer
from container.grammar.protocol import ForkServerArgs, GrammarLimits
from tests.grammar.clients import (
    END,
    TOKENIZER,
    VOCABULARY,
    args,
    await_end,
    children,
    follow,
    start,
    wait,
)

DIGIT = regex_answer("[0-9]", "f")


@pytest.fixture
def client() -> Iterator[GrammarClient]:
    client = GrammarClient(args(timeout_s=10.0))
    client.check()
    yield client
    client.close()


def _chain(length: int) -> dict[str, Any]:
    links = {f"d{index}": {"$ref": f"#/$defs/d{index + 1}"} for index in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": links | {f"d{length}": {"type": "string"}}}


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


LARK = "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(4000)) + 'r4000: "a"\n'
HOSTILE = {
    "a chain of references": schema_answer(_chain(1000), "f"),
    "a chain of definitions": schema_answer({"$defs": _chain(3000)["$defs"]}, "f"),
    "many parts": schema_answer({"allOf": [{"type": "string"}] * 3000}, "f"),
    "many objects": schema_answer(
        {"allOf": [{"properties": {f"a{i}": {"type": "string"}}} for i in range(3000)]}, "f"
    ),
    "many negations": schema_answer({"not": {"not": {"not": {"not": {"not": True}}}}}, "f"),
    "nested arrays": schema_answer(_nested(200), "f"),
    "a chain of rules": lark_answer(LARK, "f"),
    "brackets": regex_answer("(" * 20_000 + "a" + ")" * 20_000, "f"),
    "brackets in a schema": schema_answer(
        {"type": "string", "pattern": "(" * 5000 + "a" + ")" * 5000}, "f"
    ),
    "states": regex_answer("(a?){500}a{500}", "f"),
    "repetitions": regex_answer("((a{1,99}){1,99}){1,99}", "f"),
    "itself": schema_answer({"$ref": "#"}, "f"),
    "no keyword's type is right": schema_answer(
        {"type": 3, "properties": [], "required": {}, "anyOf": 1, "enum": 2, "allOf": [1]}, "f"
    ),
    "an unknown target": schema_answer({"$ref": "#/a/b/0"}, "f"),
    "another document": schema_answer({"$ref": "https://example.com/a.json"}, "f"),
    "alternatives of alternatives": schema_answer(
        {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(6)]} for i in range(12)]},
        "f",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_followed_or_refused(client: GrammarClient, name: str) -> None:
    neighbour = wait(client, start(client, DIGIT))
    constraint = wait(client, start(client, HOSTILE[name]))
    if constraint.error is not None:
        assert isinstance(constraint.error, InvalidParameter)
        assert len(constraint.error.message) < 1000
        assert "<state>" not in constraint.error.message
    assert follow(client, neighbour, "7") == 1
    assert neighbour.is_complete


def test_a_compile_without_end_is_ended_and_others_do_not_wait() -> None:
    client = GrammarClient(args(timeout_s=2.0))
    client.check()
    slow = [start(client, regex_answer("a*" * 100_000 + "b" * i, "f")) for i in range(3)]
    quick = wait(client, start(client, DIGIT))
    assert quick.error is None
    assert not any(constraint.is_ready for constraint in slow)
    for constraint in slow:
        error = wait(client, constraint).error
        assert isinstance(error, InvalidParameter)
        assert "GRAMMAR_TIMEOUT" in error.message
    client.close()


def test_slow_tokens_are_refused_within_the_limit() -> None:
    limits = GrammarLimits(timeout_s=4.0, memory_bytes=2**30)
    client = GrammarClient(ForkServerArgs(TOKENIZER.serialise(), VOCABULARY, [END], {}, limits))
    client.check()
    started = time.monotonic()
    constraint = wait(client, start(client, regex_answer("((a{1000}){1000}){1000}", "f")))
    num_tokens = 0  # none, if the compile alone takes all of the time
    while constraint.error is None and num_tokens < 100:
        num_tokens += follow(client, constraint, "a")
    took_s, error = time.monotonic() - started, constraint.error
    assert isinstance(error, InvalidParameter)
    assert "GRAMMAR_TIMEOUT" in error.message
    # The limit counts processor time, of which a busy machine gives little.
    assert took_s < 30.0, num_tokens
    client.close()


def test_a_compilation_without_requests_is_cancelled(client: GrammarClient) -> None:
    started = time.monotonic()
    for index in range(12):  # more than compile at the same time
        start(client, regex_answer("a*" * 100_000 + "b" * index, "f")).close()
    assert wait(client, start(client, DIGIT)).error is None
    assert time.monotonic() - started < 8


def test_a_too_complex_match_fails_its_request_only(client: GrammarClient) -> None:
    schema = {"type": "string", "pattern": r"^(\S+\s*){1,200}$", "maxLength": 2000}
    constraint = wait(client, start(client, schema_answer(schema, "response_format")))
    neighbour = constraint.copy()
    assert follow(client, neighbour, '"Once upon') > 0
    english = "The quick brown fox jumps over the lazy dog, and goes on to tell of many things. "
    follow(client, constraint, '"' + english * 16)
    error = constraint.error
    assert isinstance(error, InvalidParameter)
    assert error.field == "response_format"
    assert r"(\\S+\\s*){1,200}" in error.message
    assert follow(client, neighbour, " a time") > 0
    assert neighbour.error is None
    later = wait(client, start(client, schema_answer(schema, "response_format")))
    assert follow(client, later, '"Once upon a time') > 0
    assert later.error is None


def test_a_sequence_survives_its_process_once(client: GrammarClient) -> None:
    constraint = wait(client, start(client, choice_answer(["yes and no", "yes and yes"], "f")))
    other = wait(client, start(client, DIGIT))
    assert follow(client, constraint, "yes") > 0
    copy = constraint.copy()
    os.kill(children(client)[0], signal.SIGKILL)
    assert follow(client, constraint, " and no") > 0
    assert (constraint.is_complete, constraint.error) == (True, None)
    assert follow(client, copy, " and ") > 0
    os.kill(children(client)[-1], signal.SIGTERM)
    client.wait(lambda: copy.error is not None, 10.0)
    assert isinstance(copy.error, Unavailable)
    assert copy.error.retry_after_s is not None
    assert follow(client, other, "7") == 1
    assert wait(client, start(client, DIGIT)).error is None


def test_a_process_that_is_killed_while_it_compiles_is_replaced(client: GrammarClient) -> None:
    constraint = start(client, schema_answer({"type": "object"}, "f"))
    until = time.monotonic() + 10
    while not (pids := children(client)) and time.monotonic() < until:
        client.wait(lambda: False, 0.0)
    os.kill(pids[0], signal.SIGKILL)
    assert wait(client, constraint).error is None


def test_a_long_answer_goes_on_in_another_process(
    client: GrammarClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container.grammar.constraint.TOKENS_A_MESSAGE", 3)
    constraint = wait(client, start(client, regex_answer("(one two three ){8}end", "f")))
    assert follow(client, constraint, "one two three " * 7) > 10
    os.kill(children(client)[0], signal.SIGKILL)
    assert follow(client, constraint, "one two three end") > 0
    assert (constraint.is_complete, constraint.error) == (True, None)


def test_a_dead_fork_server_costs_no_grammar(client: GrammarClient) -> None:
    constraint = wait(client, start(client, choice_answer(["yes", "no"], "f")))
    os.kill(client._server.pid, signal.SIGKILL)
    several = [start(client, regex_answer(f"[0-9]{{{count}}}", "f")) for count in (2, 3, 4)]
    assert [wait(client, constraint).error for constraint in several] == [None] * 3
    assert follow(client, constraint, "yes") > 0
    assert (constraint.is_complete, constraint.error) == (True, None)


def test_a_dead_fork_server_leaves_no_idle_process(
    client: GrammarClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container.grammar.client.LIFETIME_S", 0.0)
    wait(client, start(client, choice_answer(["yes", "no"], "f"))).close()
    used = wait(client, start(client, DIGIT))
    pids, server = children(client), client._server.pid
    os.kill(server, signal.SIGKILL)
    client.wait(lambda: client._server.pid != server, 10.0)
    await_end(pids[0])
    assert follow(client, used, "7") == 1
    used.close()
    await_end(pids[1])
    assert wait(client, start(client, DIGIT)).error is None


def test_a_process_that_died_while_idle_is_replaced(client: GrammarClient) -> None:
    wait(client, start(client, DIGIT)).close()
    [pid] = children(client)
    os.kill(pid, signal.SIGKILL)
    await_end(pid)
    assert wait(client, start(client, DIGIT)).error is None


def test_a_stopped_process_is_replaced() -> None:
    client = GrammarClient(args(timeout_s=2.0))
    client.check()
    constraint = wait(client, start(client, DIGIT))
    [pid] = children(client)
    os.kill(pid, signal.SIGSTOP)
    constraint.accept(TOKENIZER.encode("7", add_special_tokens=False)[0])
    assert wait(client, constraint).error is None
    assert constraint.is_complete
    await_end(pid)
    os.kill(client._server.pid, signal.SIGSTOP)
    assert wait(client, start(client, regex_answer("[0-9]{2}", "f"))).error is None
    client.close()


def test_idle_processes_are_few_and_all_end_with_the_client(client: GrammarClient) -> None:
    for index in range(20):
        wait(client, start(client, regex_answer(f"a{{{index + 1}}}", "f"))).close()
    pids = children(client)
    client.close()
    for pid in pids:
        await_end(pid)


def test_a_tokenizer_that_does_not_suit_is_named() -> None:
    client = GrammarClient(ForkServerArgs("{}", 10, [], {}, GrammarLimits()))
    with pytest.raises(GrammarServerFailed):
        client.check()
    client.close()


def test_a_mask_covers_the_models_rows_only(client: GrammarClient) -> None:
    constraint = wait(client, start(client, DIGIT))
    for words in (1, 64, 100):
        mask = np.zeros(words, np.int32)
        constraint.fill(mask)
        assert mask.any() or words == 1
