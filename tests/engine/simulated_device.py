"""A device that runs the steps of an engine on the contents of blocks instead of numbers."""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from container.engine.model_runner import Sampled, StepOutput
from container.engine.schedule import Batch, BlockCopy, ScheduledSequence
from container.engine.sequence import Sequence
from container.messages.engine import (
    AdapterInfo,
    FinishReason,
)
from container.messages.images import ImageTensors
from tests.support.grammars import Countdown

VOCABULARY, END, STOP = 7, 6, 3
Completion = tuple[list[int], FinishReason | None]
Place = tuple[int, int]  # a block and an offset in it


class Content(NamedTuple):
    """The inputs from which a cell is computed."""

    ids: tuple[int, ...]
    adapter: int
    picture: int


def contents(ids: list[int], adapter: int, images: ImageTensors) -> list[Content]:
    """Return the contents of the cells of these tokens, in their order."""
    picture = images["pixels"].data[0] if images else 0
    return [Content(tuple(ids[:end]), adapter, picture) for end in range(1, len(ids) + 1)]


def next_token(last: Content, seq_index: int) -> int:
    """Return the token that the model samples; it often repeats, so that drafts come true."""
    chance = hash((last, seq_index)) >> 8
    if chance % 5 < 3 and len(last.ids) > 3:
        return last.ids[-3]
    return (chance >> 8) % VOCABULARY


class Memory:
    """The cells of the KV cache and of the host's slots; a missing one is junk."""

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
        """Fill the memory with junk, as a failed step may leave it."""
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
