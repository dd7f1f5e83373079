"""No order of requests makes the engine's arithmetic lose a block."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from container.engine.adapters import NO_ADAPTER
from container.engine.blocks.block_pool import BlockPool
from container.engine.engine import Engine
from container.messages.engine import SamplingParams, Submit
from tests.support.engines import ScriptedRunner, engine_config

# Few ids and short blocks, so that prefixes meet again and again.
PROMPTS = st.lists(st.integers(60, 61), min_size=1, max_size=30)


class Pool(RuleBasedStateMachine):
    """Tables take, share and give back blocks; full blocks are remembered and found again.

    What blocks and slots hold is followed beside the pool: the prefix that ends with it.
    """

    @initialize(
        num_blocks=st.integers(1, 12), block_size=st.integers(1, 4), num_slots=st.integers(0, 9)
    )
    def begin(self, num_blocks: int, block_size: int, num_slots: int) -> None:
        self.pool = BlockPool(num_blocks, block_size, num_slots)
        self.tables: list[tuple[list[int], list[int]]] = []  # ids, their blocks
        self.blocks: dict[int, list[int]] = {}
        self.slots: dict[int, list[int]] = {}

    @rule(ids=PROMPTS)
    def take(self, ids: list[int]) -> None:
        found = self.pool.find_prefix(ids)
        cached = [block.block_id for block in found]
        assert len(cached) <= len(ids) // self.pool.block_size
        self.pool.touch(cached)
        offloaded = self.pool.find_offloaded(ids, found)
        missing = self.pool.blocks_for(len(ids)) - len(cached)
        if missing > self.pool.num_free:
            self.pool.free(cached)
            return
        fresh = self.pool.allocate(missing)
        self.pool.restore(offloaded, fresh[: len(offloaded)])
        self.make_copies()
        table = cached + fresh
        self.tables.append((ids, table))
        name, size = NO_ADAPTER, self.pool.block_size
        known = len(cached) + len(offloaded)
        for index in range(len(ids) // size):
            prefix = ids[: (index + 1) * size]
            if index < known:
                assert self.blocks[table[index]] == prefix
            self.blocks[table[index]] = prefix
            name = self.pool.cache_full_block(table[index], name, prefix[-size:])

    def make_copies(self) -> None:
        for block_copy in self.pool.take_copies():
            if block_copy.to_host:
                self.slots[block_copy.slot] = self.blocks[block_copy.block_id]
            else:
                self.blocks[block_copy.block_id] = self.slots[block_copy.slot]

    @rule()
    def forget(self) -> None:
        self.pool.reset_prefix_cache()
        assert self.pool.num_cached == self.pool.num_offloaded == 0

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        ids, table = data.draw(st.sampled_from(self.tables))
        self.pool.touch(table)
        self.tables.append((ids, list(table)))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.free(self.tables.pop(index)[1])

    @rule(ids=PROMPTS)
    def a_cached_prefix_begins_with_these_ids(self, ids: list[int]) -> None:
        size = self.pool.block_size
        tokens = [token for block in self.pool.find_prefix(ids) for token in block.key[1]]
        assert tokens == ids[: len(tokens) // size * size]

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check_invariants(table for _, table in self.tables)
            assert self.pool.num_free + self.pool.num_used == self.pool.num_blocks


class Requests(RuleBasedStateMachine):
    """Requests come, are stepped and aborted; all that is left finishes at the end."""

    @initialize(
        num_blocks=st.integers(12, 24),
        budget=st.integers(1, 40),
        running=st.integers(1, 6),
        speculate=st.integers(0, 4),
        reuses=st.booleans(),
        period=st.sampled_from([3, 100]),
    )
    def begin(
        self, num_blocks: int, budget: int, running: int, speculate: int, reuses: bool, period: int
    ) -> None:
        self.runner = ScriptedRunner(period)  # a short one repeats itself, so it is drafted
        config = engine_config(
            num_blocks=num_blocks, max_total_tokens=48, max_input_tokens=40,
            max_batch_tokens=budget, max_running=running, speculate=speculate,
            reuses_prefixes=reuses,
        )  # fmt: skip
        self.engine = Engine(self.runner, config, end_token_ids=[20])
        self.budget = budget
        self.num_expected: dict[int, int] = {}
        self.got: dict[tuple[int, int], list[int]] = {}

    @rule(prompt=PROMPTS, new=st.integers(1, 8), count=st.integers(1, 3))
    def submit(self, prompt: list[int], new: int, count: int) -> None:
        number = len(self.num_expected)
        self.num_expected[number] = count
        params = SamplingParams(max_new_tokens=new)
        self.engine.submit(b"a", Submit(number, prompt, params, count))

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            for _, event in self.engine.step():
                self.got.setdefault((event.request_id, event.seq_index), []).append(event.token_id)
            self.engine.scheduler.check_invariants()

    @precondition(lambda self: self.num_expected)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.num_expected) - 1))
        self.engine.abort(b"a", number, data.draw(st.sampled_from([None, 0, 1])))
        self.engine.scheduler.check_invariants()

    @invariant()
    def no_step_is_over_its_budget(self) -> None:
        if hasattr(self, "runner"):
            assert all(batch.num_tokens <= self.budget for batch in self.runner.batches)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(5000):
            if not self.engine.has_work:
                break
            self.step(1)
        assert not self.engine.has_work
        assert self.engine.load.blocks_used == 0
        for tokens in self.got.values():
            # The scripted token at a place depends on the place alone, so nothing is skipped.
            period = self.runner.period
            assert tokens == [(tokens[0] - 2 + i) % period + 2 for i in range(len(tokens))]


def test_random_engines_include_drafts() -> None:
    engine = Engine(ScriptedRunner(3), engine_config(speculate=4), end_token_ids=[])
    engine.submit(b"a", Submit(0, [60] * 5, SamplingParams(max_new_tokens=40)))
    while engine.has_work:
        engine.step()
        engine.scheduler.check_invariants()
    assert engine.load.accepted_tokens > 20


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@given(st.lists(PROMPTS, min_size=1, max_size=5), st.integers(1, 4))
@settings(deadline=None)
def test_the_longest_cached_prefix_is_reused(prompts: list[list[int]], block_size: int) -> None:
    pool = BlockPool(200, block_size)
    for ids in prompts:
        name = NO_ADAPTER
        table = pool.allocate(pool.blocks_for(len(ids)))
        for index in range(len(ids) // block_size):
            part = ids[index * block_size : (index + 1) * block_size]
            name = pool.cache_full_block(table[index], name, part)
    for ids in prompts:
        assert len(pool.find_prefix(ids)) == len(ids) // block_size
