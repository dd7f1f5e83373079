"""State slots: one owner each, the lowest first; and the schedule of a recurrent model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from container.engine.blocks.state_slots import StateSlots
from container.engine.engine import Engine
from container.messages.engine import SamplingParams, Submit
from tests.support.engines import ScriptedRunner, engine_config


@given(st.integers(1, 6), st.lists(st.integers(0, 5), max_size=40))
@settings(max_examples=60, deadline=None)
def test_no_slot_has_two_owners(num_slots: int, moves: list[int]) -> None:
    slots, used = StateSlots(num_slots), []
    for move in moves:
        if move < len(used):
            slots.free(used.pop(move))
        elif slots.num_free:
            slot = slots.allocate()
            assert slot == min(set(range(num_slots)) - set(used))
            used.append(slot)
        slots.check_invariants(used)
        assert slots.num_used == len(used)


def test_a_lost_slot_is_noticed() -> None:
    slots = StateSlots(2)
    slots.allocate()
    with pytest.raises(AssertionError, match="leaked"):
        slots.check_invariants([])


class Prefixes(RuleBasedStateMachine):
    """Snapshots are reserved, filled, found, dropped; beside them, what each must hold."""

    @initialize(count=st.integers(0, 4))
    def begin(self, count: int) -> None:
        self.snapshots = StateSlots(2, count).snapshots
        self.reserved: list[int] = []
        self.held: dict[int, int] = {}  # slot -> prefix

    @rule()
    def reserve(self) -> None:
        slot = self.snapshots.reserve()
        if slot is not None:
            assert slot not in self.reserved
            self.held.pop(slot, None)
            self.reserved.append(slot)

    @rule(prefix=st.integers(0, 5))
    def fill(self, prefix: int) -> None:
        if self.reserved:
            slot = self.reserved.pop()
            if prefix not in self.snapshots:
                self.held[slot] = prefix
            self.snapshots.add(prefix, slot)

    @rule(prefix=st.integers(0, 5))
    def find_or_drop(self, prefix: int) -> None:
        assert (prefix in self.snapshots) == (prefix in self.held.values())
        if prefix in self.snapshots:
            assert self.held[self.snapshots.find(prefix)] == prefix
            self.snapshots.drop(prefix)
            self.held = {slot: held for slot, held in self.held.items() if held != prefix}

    @rule()
    def begin_a_step(self) -> None:
        self.snapshots.release_reserved()
        self.reserved.clear()

    @invariant()
    def nothing_leaks(self) -> None:
        if hasattr(self, "snapshots"):
            self.snapshots.check_invariants()
            assert len(self.snapshots) == len(self.held)


TestPrefixes = Prefixes.TestCase
TestPrefixes.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_the_least_recently_used_snapshot_is_evicted() -> None:
    snapshots = StateSlots(1, 2).snapshots
    for prefix in (1, 2):
        slot = snapshots.reserve()
        assert slot is not None
        snapshots.add(prefix, slot)
    snapshots.find(1)
    assert snapshots.reserve() is not None
    assert 1 in snapshots
    assert 2 not in snapshots


def _computed(engine: Engine, prompt: list[int]) -> int:
    """Run a prompt; return the number of its tokens that the cache had."""
    before = engine.load.cached_tokens
    engine.submit(b"a", Submit(0, prompt, SamplingParams(max_new_tokens=3)))
    while engine.has_work:
        engine.step()
        engine.scheduler.check_invariants()
    return engine.load.cached_tokens - before


def _engine(**sizes: int) -> Engine:
    defaults = {"num_blocks": 60, "num_state_slots": 4, "num_snapshots": 4, "chunk_multiple": 8}
    return Engine(ScriptedRunner(), engine_config(**defaults | sizes), end_token_ids=[])


def test_a_prefix_is_reused_up_to_its_snapshots() -> None:
    engine, shared = _engine(), list(range(60, 100))
    assert _computed(engine, [*shared, 5, 6, 7]) == 0
    assert _computed(engine, [*shared, 5, 6, 7]) == 40  # the end of the first prompt
    assert _computed(engine, [*shared[:30], 7, 8, 9]) == 0  # nobody's end
    assert _computed(engine, [*shared[:30], 9, 8, 7]) == 24  # the last one left the others here
    longer = [*shared[:30], 9, 8, 7, *range(50, 60)]
    assert _computed(engine, longer) == 24
    assert _computed(engine, longer) == 40
    assert engine.load.state_snapshots == 4


def test_a_prefill_never_leaves_one_token() -> None:
    engine = _engine()
    prompt = list(range(60, 100))
    _computed(engine, [*prompt, 5, 6])
    assert _computed(engine, [*prompt, 5]) == 0
    assert _computed(engine, [*prompt, 5, 9]) == 40


def test_a_snapshot_is_evicted_with_its_block() -> None:
    engine = _engine(num_blocks=24, max_total_tokens=90, max_input_tokens=80)
    _computed(engine, list(range(60, 100)))
    _computed(engine, list(range(100, 180)))
    assert engine.load.state_snapshots == 1
    assert _computed(engine, list(range(60, 100))) == 0


def test_a_failed_step_keeps_no_snapshot() -> None:
    engine = _engine()
    prompt = list(range(60, 100))
    _computed(engine, prompt)
    engine.run_self_test()
    assert engine.load.state_snapshots == 0
    assert _computed(engine, prompt) == 0


def _chunks(**sizes: int) -> tuple[ScriptedRunner, list[tuple[int, int, int]]]:
    runner = ScriptedRunner()
    sizes = {"num_blocks": 200, "num_state_slots": 8, "chunk_multiple": 16} | sizes
    engine = Engine(runner, engine_config(**sizes), end_token_ids=[])
    for number, length in enumerate((70, 33, 16, 5, 41)):
        engine.submit(b"a", Submit(number, [60] * length, SamplingParams(max_new_tokens=9)))
    while engine.has_work:
        engine.step()
        engine.scheduler.check_invariants()
    items = [item for batch in runner.batches for item in batch.items]
    assert engine.load.state_slots_used == 0
    return runner, [(i.sequence.request_id, i.start, i.end) for i in items if not i.is_decode]


@pytest.mark.parametrize("budget", [25, 40, 64])
def test_prompts_are_split_at_multiples(budget: int) -> None:
    runner, chunks = _chunks(max_batch_tokens=budget)
    assert all(batch.num_tokens <= budget for batch in runner.batches)
    lengths = (70, 33, 16, 5, 41)
    for number, start, end in chunks:
        assert start % 16 == 0
        assert end % 16 == 0 or end == lengths[number]


def test_a_budget_that_is_too_small_splits_anywhere() -> None:
    _, chunks = _chunks(max_batch_tokens=10)
    assert any(end % 16 for _, _, end in chunks)


def test_a_sequence_waits_for_a_slot() -> None:
    runner, _ = _chunks(num_state_slots=2, max_batch_tokens=64)
    assert max(len(batch.items) for batch in runner.batches) == 2
