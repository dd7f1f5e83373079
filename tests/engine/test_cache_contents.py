"""Every step reads what it should: a model check of the engine against a simulated device.

The device has no tensors. Each cell of its KV cache holds all that a real cell is computed from:
the ids up to there, the adapter and the picture. Slots of the host's memory hold copies of such
cells. Passes run in the order of the device's stream: one makes its batch's moves, writes its
cells, then looks at every cell that its rows read. A promised token is taken from what the step
before has sampled, as on a device. What comes next is a function of the cell, so an oracle without
any engine knows what each request must be told.

A game sends random requests to an engine of random sizes, aborts some and lets steps fail, after
which the memory is junk and the engine has to prove itself.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import pytest

from container.engine.config import EngineConfig
from container.engine.engine import Engine
from container.engine.model_runner import Sampled, StepOutput
from container.engine.schedule import Batch, BlockCopy, ScheduledSequence
from container.engine.sequence import Sequence
from container.messages.engine import (
    AdapterInfo,
    FinishReason,
    SamplingParams,
    Submit,
    TokenEvent,
)
from container.messages.images import ImageTensors, Tensor
from tests.support.grammars import Countdown, ScriptedGrammars

VOCABULARY, END, STOP = 7, 6, 3
OWNER = b"f"
SEEDS = range(12)
QUICK_SEEDS = range(2)  # of the tests that are not slow
GAMES = 6  # of each seed, with overlap and without
STEPS = 200  # in which requests come; then all of them end

Completion = tuple[list[int], FinishReason | None]
Place = tuple[int, int]  # a block and an offset in it


class Content(NamedTuple):
    """What a cell is computed from."""

    ids: tuple[int, ...]
    adapter: int
    picture: int


def contents(ids: list[int], adapter: int, images: ImageTensors) -> list[Content]:
    """What the cells of these tokens must hold, in their order."""
    picture = images["pixels"].data[0] if images else 0
    return [Content(tuple(ids[:end]), adapter, picture) for end in range(1, len(ids) + 1)]


def next_token(last: Content, seq_index: int) -> int:
    """What the model samples after a token. Often repeats itself, so that drafts come true."""
    chance = hash((last, seq_index)) >> 8
    if chance % 5 < 3 and len(last.ids) > 3:
        return last.ids[-3]
    return (chance >> 8) % VOCABULARY


class Memory:
    """The cells of the KV cache and of the host's slots; what is not there is junk."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.cells: dict[Place, Content | None] = {}
        self.slots: dict[Place, Content | None] = {}

    def place(self, sequence: Sequence, position: int) -> Place:
        block, offset = divmod(position, self.block_size)
        return sequence.block_table[block], offset

    def copy_blocks(self, copies: Iterable[BlockCopy]) -> None:
        for block_copy in copies:
            for offset in range(self.block_size):
                cell, slot = (block_copy.block_id, offset), (block_copy.slot, offset)
                if block_copy.to_host:
                    self.slots[slot] = self.cells.get(cell)
                else:
                    self.cells[cell] = self.slots.get(slot)

    def lose_all(self) -> None:
        self.cells.clear()
        self.slots.clear()


class Injected(Exception):
    """A failure of the device."""


@dataclass
class Row:
    """A sequence in a pass: its item, and the contents of its tokens with those of its draft."""

    item: ScheduledSequence
    contents: list[Content]
    num_scores: int

    @property
    def written(self) -> range:
        """The positions that the pass writes."""
        return range(self.item.start, len(self.contents))


class SimulatedDevice:
    """Runs passes in the order in which they begin."""

    def __init__(self, block_size: int, overlaps: bool) -> None:
        self.overlaps = overlaps
        self.samples_in_execute = False
        self.memory = Memory(block_size)
        self.sampled: list[int] = []
        self.unread = 0
        self.fails_at = ""

    def prepare_prompt(self, _: object, *, encodes: bool) -> None:
        """Passes read images themselves."""

    def execute(self, batch: Batch) -> "SimulatedStep":
        self.may_fail("execute")
        assert self.unread <= self.overlaps, "too many steps are not read"
        self.memory.copy_blocks(batch.copies)
        rows = [self._row(item) for item in batch.items]
        self._write(rows)
        self._read(rows)
        self.unread += 1
        return SimulatedStep(self, rows)

    def may_fail(self, place: str) -> None:
        if self.fails_at == place:
            self.fails_at = ""
            raise Injected

    def lose_all(self) -> None:
        """What a failure may leave behind: nothing that anyone could use."""
        self.memory.lose_all()
        self.sampled = []
        self.unread = 0

    def _row(self, item: ScheduledSequence) -> Row:
        sequence = item.sequence
        ids = sequence.token_ids[: item.end]
        if len(ids) < item.end:
            assert sequence.placeholder is not None, "a token that nobody has promised"
            ids.append(self.sampled[sequence.placeholder])
        assert len(ids) == item.end
        ids += item.draft
        held = contents(ids, sequence.adapter, sequence.images)
        return Row(item, held, item.num_prompt_logprobs)

    def _write(self, rows: list[Row]) -> None:
        written: set[Place] = set()
        for row in rows:
            for position in row.written:
                place = self.memory.place(row.item.sequence, position)
                assert place not in written, "two rows write one cell"
                written.add(place)
                self.memory.cells[place] = row.contents[position]

    def _read(self, rows: list[Row]) -> None:
        for row in rows:
            for position, content in enumerate(row.contents):
                place = self.memory.place(row.item.sequence, position)
                assert self.memory.cells.get(place) == content, f"wrong at position {position}"


class SimulatedStep:
    """A step that has begun; samples from the rows that are not void."""

    def __init__(self, device: SimulatedDevice, rows: list[Row]) -> None:
        self.device = device
        self.rows = {row.item.sequence: row for row in rows}
        assert len(self.rows) == len(rows), "a sequence twice in a batch"
        self.output = StepOutput([])

    def sample(self, batch: Batch) -> None:
        self.device.may_fail("sample")
        rows = [self.rows[item.sequence] for item in batch.items]
        tokens = [token for row in rows for token in self._tokens(row)]
        scores = {index: self._scores(row) for index, row in enumerate(rows) if row.num_scores}
        self.device.sampled = tokens
        self.output = StepOutput([Sampled(token) for token in tokens], scores)

    def get_output(self) -> StepOutput:
        self.device.may_fail("get_output")
        self.device.unread -= 1
        return self.output

    def _tokens(self, row: Row) -> Iterator[int]:
        item, sequence = row.item, row.item.sequence
        assert not item.is_stale, "samples for nobody"
        if not item.samples:
            return
        assert row.contents[item.end - 1].ids == tuple(sequence.token_ids), "a broken promise"
        if sequence.constraint is not None:
            assert isinstance(sequence.constraint, Countdown)
            assert sequence.constraint.accepted == sequence.completion_len, "out of step"
            assert sequence.constraint.is_ready, "a bitmask that is late"
        for last in row.contents[item.end - 1 :]:
            yield next_token(last, sequence.seq_index)

    def _scores(self, row: Row) -> list[float]:
        """A prompt token's score is its position."""
        return [float(row.item.start + 1 + index) for index in range(row.num_scores)]


class CountedAdapters:
    """Adapters whose names are their numbers; counts who uses them."""

    def __init__(self) -> None:
        self.used: Counter[int] = Counter()

    has_work = False

    def poll(self) -> None:
        """Nothing is loading."""

    def loading(self, number: int) -> None:
        """All are in memory."""

    def acquire(self, name: str) -> int:
        self.used[int(name)] += 1
        return int(name)

    def release(self, number: int) -> None:
        self.used[number] -= 1
        assert self.used[number] >= 0, "released more often than acquired"

    def add(self, name: str, source: str, *, preload: bool, pin: bool) -> Future[None]:
        """All are known."""
        raise AssertionError("no adapter is added here")

    def remove(self, name: str) -> None:
        """None is forgotten."""

    def removed(self) -> list[str]:
        return []

    def infos(self) -> list[AdapterInfo]:
        return []


def expected(submit: Submit, seq_index: int) -> Completion:
    """The oracle: what one sequence is told, and why it ends; None if by its grammar's error."""
    params, ids = submit.params, list(submit.prompt_ids)
    completion: list[int] = []
    reason = None
    while reason is None:
        last = contents([*ids, *completion], int(submit.adapter or 0), submit.images)[-1]
        token = next_token(last, seq_index)
        completion.append(token)
        reason = expected_reason(params, completion)
        goes_on = reason in (None, FinishReason.LENGTH)
        if goes_on and params.grammar == f"fails {len(completion)}":
            return completion[:-1], None
    return completion, reason


def expected_reason(params: SamplingParams, completion: list[int]) -> FinishReason | None:
    if completion[-1] == END and not params.ignore_eos:
        return FinishReason.END_TOKEN
    if completion[-1] in params.stop_token_ids:
        return FinishReason.STOP
    if params.grammar == f"ends {len(completion)}":
        return FinishReason.END_TOKEN
    return FinishReason.LENGTH if len(completion) >= params.max_new_tokens else None


class Client:
    """Knows which sequences have not ended, and compares what they are told with the oracle."""

    def __init__(self) -> None:
        self.submitted: dict[int, Submit] = {}
        self.unfinished: dict[int, set[int]] = {}
        self.lost: set[int] = set()  # their last tokens may be told or not
        self.received: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self.oracle = cache(lambda request_id, index: expected(self.submitted[request_id], index))

    def ask(self, submit: Submit) -> None:
        self.submitted[submit.request_id] = submit
        self.unfinished[submit.request_id] = set(range(submit.num_sequences))

    def take(self, event: TokenEvent) -> None:
        request_id, seq_index = event.request_id, event.seq_index
        if request_id in self.lost:
            return
        assert seq_index in self.unfinished.get(request_id, ()), "a token after the end"
        received = self.received[request_id, seq_index]
        received.append(event.token_id)
        tokens, reason = self.oracle(request_id, seq_index)
        assert received == tokens[: len(received)]
        assert event.finish_reason is (reason if len(received) == len(tokens) else None)
        if len(received) == 1:
            self._check_scores(event)
        if event.finish_reason is not None:
            self.end(request_id, seq_index)

    def end(self, request_id: int, seq_index: int) -> None:
        left = self.unfinished[request_id]
        left.remove(seq_index)
        if not left:
            del self.unfinished[request_id]

    def fail(self, request_id: int) -> None:
        assert self.submitted[request_id].params.grammar.startswith("fails")
        del self.unfinished[request_id]

    def lose(self, request_id: int) -> None:
        del self.unfinished[request_id]
        self.lost.add(request_id)

    def _check_scores(self, event: TokenEvent) -> None:
        submit = self.submitted[event.request_id]
        if submit.params.prompt_logprobs:
            assert event.prompt is not None
            assert event.prompt.logprobs == [float(i) for i in range(1, len(submit.prompt_ids))]


def random_config(rnd: random.Random, overlaps: bool) -> EngineConfig:
    block_size = rnd.choice([1, 2, 3, 4])
    num_blocks = rnd.randint(40, 130) // block_size
    total = min(num_blocks * block_size, rnd.randint(30, 80))
    return EngineConfig(
        block_size=block_size,
        num_blocks=num_blocks,
        max_batch_tokens=rnd.choice([1, 3, 8, 40]),
        max_running=rnd.randint(1, 6),
        max_input_tokens=total - 1,
        max_total_tokens=total,
        num_slots=rnd.choice([0, 2, 5, 30, 200]),
        speculate=0 if overlaps else rnd.choice([0, 3]),
    )


class RandomRequests:
    """Makes requests whose prompts often begin alike."""

    def __init__(self, rnd: random.Random, max_total: int) -> None:
        self.rnd = rnd
        self.max_total = max_total
        self.texts = [self._ids(max_total) for _ in range(3)]

    def make(self, request_id: int) -> Submit:
        rnd = self.rnd
        prompt = self._prompt(rnd.randint(1, self.max_total - 1))
        return Submit(
            request_id,
            prompt,
            self._params(self.max_total - len(prompt)),
            rnd.choice([1, 1, 1, 2, 3]),
            self._images(),
            adapter=rnd.choice(["", "", "1", "2"]),
            session=rnd.choice(["", "", "a", "b"]),
            session_s=1000.0,
        )

    def _params(self, room: int) -> SamplingParams:
        rnd = self.rnd
        grammar = f"{rnd.choice(['ends', 'fails'])} {rnd.randint(1, 8)}"
        return SamplingParams(
            max_new_tokens=min(room, rnd.choice([1, 2, rnd.randint(1, room)])),
            stop_token_ids=rnd.choice([[], [], [STOP]]),
            ignore_eos=rnd.random() < 0.6,
            prompt_logprobs=rnd.random() < 0.2,
            grammar=grammar if rnd.random() < 0.15 else "",
        )

    def _prompt(self, length: int) -> list[int]:
        text = self.rnd.choice(self.texts)
        shared = length if self.rnd.random() < 0.7 else length // 2
        return text[:shared] + self._ids(length - shared)

    def _ids(self, count: int) -> list[int]:
        return [self.rnd.randrange(VOCABULARY) for _ in range(count)]

    def _images(self) -> ImageTensors:
        if self.rnd.random() > 0.07:
            return {}
        return {"pixels": Tensor("uint8", [1], bytes([self.rnd.randint(1, 2)]))}


class Game:
    """One engine on one device, from its first request to its last."""

    def __init__(self, rnd: random.Random, overlaps: bool) -> None:
        self.rnd = rnd
        self.config = random_config(rnd, overlaps)
        self.device = SimulatedDevice(self.config.block_size, overlaps)
        self.grammars = ScriptedGrammars(lambda: rnd.random() < 0.7)
        self.adapters = CountedAdapters()
        self.engine = Engine(
            self.device,
            self.config,
            end_token_ids=(END,),
            grammars=self.grammars,
            adapters=self.adapters,
        )
        self.requests = RandomRequests(rnd, self.config.max_total_tokens)
        self.client = Client()
        self.tally: Counter[str] = Counter()

    def play(self) -> Counter[str]:
        for _ in range(STEPS):
            self._disturb()
            self._step()
        self._finish()
        load = self.engine.load
        self.tally["preemptions"] += load.preemptions
        self.tally["restored"] += load.restored_tokens
        self.tally["accepted"] += load.accepted_tokens
        return self.tally

    def _disturb(self) -> None:
        """What may happen between two steps."""
        rnd = self.rnd
        if rnd.random() < 0.35 and len(self.client.unfinished) < 12:
            self._submit()
        if rnd.random() < 0.3:
            self.grammars.finish_one()
        if rnd.random() < 0.01:
            self.device.fails_at = rnd.choice(["execute", "sample", "get_output"])
        if rnd.random() < 0.08 and self.client.unfinished:
            self._abort()
        if rnd.random() < 0.01:
            self._unpin()
        self.engine.scheduler.check_invariants()

    def _submit(self) -> None:
        submit = self.requests.make(len(self.client.submitted))
        self.client.ask(submit)
        self.engine.submit(OWNER, submit)

    def _abort(self) -> None:
        """Abort a request, or one sequence of it."""
        request_id = self.rnd.choice(sorted(self.client.unfinished))
        indexes = sorted(self.client.unfinished[request_id])
        one = self.rnd.choice([None, *indexes])
        self.engine.abort(OWNER, request_id, one)
        for seq_index in indexes if one is None else [one]:
            self.client.end(request_id, seq_index)
        self.tally["aborts"] += 1

    def _unpin(self) -> None:
        """Have the sessions give up what they hold."""
        self.engine.scheduler.kv_cache.pinned.evict_until(self.config.num_blocks)

    def _step(self) -> None:
        try:
            events = self.engine.step()
        except Injected:
            self._recover()
            return
        for _, event in events:
            self.client.take(event)
        for _, request_id, error in self.engine.take_failures():
            if "the model failed" in error.message:
                self.client.lose(request_id)  # the device failed twice while it was alone
            else:
                self.client.fail(request_id)
        self.engine.scheduler.check_invariants()

    def _recover(self) -> None:
        self.device.lose_all()
        self.device.fails_at = ""
        self.engine.recover()
        self.engine.scheduler.check_invariants()
        self.tally["recoveries"] += 1
        self._step()  # tells what was read before the failure

    def _finish(self) -> None:
        """Nothing comes any more, so all that there is comes to its end."""
        for _ in range(20_000):
            if not self.client.unfinished and not self.engine.has_work:
                break
            self.grammars.finish_one()
            self._step()
        assert not self.client.unfinished, "the engine makes no progress"
        self._unpin()
        assert self.engine.load.blocks_used == 0
        assert not any(self.adapters.used.values())
        assert not self.grammars.constraints, "a constraint that nobody has closed"


@cache
def play(seed: int, overlaps: bool) -> Counter[str]:
    """What has happened in the games of a seed. Raises what went wrong in one."""
    rnd = random.Random(seed)
    tallies = [Game(rnd, overlaps).play() for _ in range(GAMES)]
    return sum(tallies, Counter())


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize(
    "seed",
    [seed if seed in QUICK_SEEDS else pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS],
)
def test_every_step_reads_the_right_contents(seed: int, overlaps: bool) -> None:
    play(seed, overlaps)


@pytest.mark.slow
@pytest.mark.parametrize("overlaps", [False, True])
def test_the_games_have_all_that_they_are_for(overlaps: bool) -> None:
    tally = sum((play(seed, overlaps) for seed in SEEDS), Counter())
    required = {"preemptions", "restored", "aborts", "recoveries"}
    # A draft needs the tokens before it, so there is none with overlap.
    assert set(tally) == (required if overlaps else required | {"accepted"})
