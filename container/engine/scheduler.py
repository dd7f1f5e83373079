"""The scheduler: decides which sequences run in the next step.

Knows tokens and blocks, never tensors or text; owned by the engine's loop. First come, first
served: running sequences go on first, the oldest before the younger; then waiting ones are
admitted while there is room. Without free blocks the youngest running sequence is preempted: its
blocks are freed and it waits at the front of the line, to be computed again. The oldest is never
preempted for another, so it always finishes.

With `speculate`, a sequence that goes on by one token may have a draft of the next ones computed
beside it; as far as it comes true, the sequence goes on by more.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator

from container.engine.block_pool import BlockPool
from container.engine.model_runner import Sampled, StepOutput
from container.engine.schedule import Batch, Scheduled
from container.engine.sequence import Sequence, SequenceState
from container.engine.session_prefixes import HeldPrefixes
from container.messages.engine import FinishReason

# Most prompt tokens of which a step tells log-probabilities: each has a row of logits, and on a GPU
# there is room for so many.
MAX_SCORED = 256
# A sequence, a token that it got, and why it ended with that, if it did.
Extension = tuple[Sequence, Sampled, FinishReason | None]


class Scheduler:
    """Owns every unfinished sequence and the block pool."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_batch_tokens: int,
        max_running: int,
        end_token_ids: Iterable[int],
        reuses_prefixes: bool = True,
        speculate: int = 0,
    ) -> None:
        self.pool = pool
        self.held = HeldPrefixes(pool)
        self.max_batch_tokens = max_batch_tokens
        self.max_running = max_running
        self.end_token_ids = frozenset(end_token_ids)
        self.reuses_prefixes = reuses_prefixes
        self.speculate = speculate
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._unscored = MAX_SCORED
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self.num_restored_tokens = 0
        self.num_drafted_tokens = 0
        self.num_accepted_tokens = 0

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence at the end of the line."""
        sequence.state = SequenceState.WAITING
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence wherever it stands and free its blocks."""
        if sequence.state is SequenceState.RUNNING:
            self.running.remove(sequence)
        elif sequence.state is SequenceState.WAITING:
            self.waiting.remove(sequence)
        if sequence.block_table:
            self.held.keep(sequence)
        self._release_blocks(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason

    def schedule(self) -> Batch:
        """Plan the next step; empty when there is nothing to compute before a step is applied."""
        self.held.expire()
        self._unscored = MAX_SCORED
        planned, budget = self._continue_running(self.max_batch_tokens)
        planned += self._admit(budget)
        return Batch(tuple(planned), self.pool.take_moves() if planned else ())

    def advance(self, batch: Batch) -> None:
        """Count what a step computes as computed, and promise what it samples.

        From now on the next step may be scheduled, though this one is not read.
        """
        place = 0
        for item in batch.items:
            sequence = item.sequence
            sequence.num_computed += item.num_tokens
            self._remember_blocks(sequence)
            if item.samples:
                sequence.promise = place
                place += 1 + len(item.draft)

    def apply(self, batch: Batch, output: StepOutput) -> list[Extension]:
        """Take over the result of a step after `advance`; return all new tokens, in order."""
        sampled = iter(output.sampled)
        extensions: list[Extension] = []
        for index, item in enumerate(batch.items):
            # All of an item's tokens are taken, though only those up to a wrong guess count.
            count = 1 + len(item.draft) if item.samples else 0
            tokens = [next(sampled) for _ in range(count)]
            if item.is_void:
                continue
            sequence = item.sequence
            sequence.prompt_logprobs += output.prompt_logprobs.get(index, [])
            if not tokens:
                continue
            extensions += self._extend(item, tokens)
            if item.draft:
                self._remember_blocks(sequence)
            if sequence.finish_reason is not None:
                self.remove(sequence, sequence.finish_reason)
        return extensions

    def _extend(self, item: Scheduled, tokens: list[Sampled]) -> list[Extension]:
        sequence, extensions = item.sequence, []
        sequence.promise = None
        self.num_drafted_tokens += len(item.draft)
        for token, guess in zip(tokens, [*item.draft, None], strict=True):
            sequence.append(token.token_id, self.end_token_ids)
            extensions.append((sequence, token, sequence.finish_reason))
            if sequence.finish_reason is not None or token.token_id != guess:
                break
            sequence.num_computed += 1
            self.num_accepted_tokens += 1
        return extensions

    def check_invariants(self) -> None:
        """Assert what must hold between any two steps."""
        tables = [sequence.block_table for sequence in self]
        self.pool.check_invariants([*tables, *self.held.tables()])
        for sequence in self.running:
            assert sequence.state is SequenceState.RUNNING
            assert sequence.num_to_compute >= 1
            assert self.pool.blocks_for(sequence.num_computed) <= len(sequence.block_table)
        for sequence in self.waiting:
            assert sequence.state is SequenceState.WAITING
            assert not sequence.block_table
            assert sequence.num_computed == 0
        assert len(self.running) <= self.max_running

    def _continue_running(self, budget: int) -> tuple[list[Scheduled], int]:
        planned: list[Scheduled] = []
        # Decodes first: a long prefill must not take the budget of those that already stream.
        order = sorted(self.running, key=lambda sequence: sequence.num_to_compute > 1)
        for sequence in order:
            if budget == 0:
                break
            if sequence.state is not SequenceState.RUNNING:
                continue  # preempted by one before it in this loop
            if sequence.ends_with_promise:
                continue
            count = self._share(sequence, budget)
            if count == 0 or not self._make_room(sequence, sequence.num_computed + count):
                continue
            item = self._with_draft(Scheduled.of(sequence, count), budget - count)
            planned.append(item)
            budget -= count + len(item.draft)
        # A sequence may have been planned and then preempted for an older one.
        kept = [item for item in planned if item.sequence.state is SequenceState.RUNNING]
        return kept, self.max_batch_tokens - Batch(tuple(kept)).num_tokens

    def _share(self, sequence: Sequence, budget: int) -> int:
        """How many tokens of a sequence this step computes."""
        count = min(sequence.num_to_compute, budget)
        if _scores(sequence):
            count = min(count, self._unscored)
            self._unscored -= count
        return count

    def _with_draft(self, item: Scheduled, budget: int) -> Scheduled:
        """Add a draft where one may be made, never at the cost of another sequence's blocks."""
        sequence = item.sequence
        if not (self.speculate and item.is_decode and sequence.may_guess):
            return item
        room = (len(sequence.block_table) + self.pool.num_free) * self.pool.block_size - item.end
        unsaid = sequence.params.max_new_tokens - sequence.completion_len - 1
        draft = sequence.guess(max(0, min(self.speculate, budget, unsaid, room)))
        if draft:
            self._make_room(sequence, item.end + len(draft))
        return Scheduled.of(sequence, item.num_tokens, draft)

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a running sequence blocks for this many tokens, preempting younger ones."""
        missing = self.pool.blocks_for(num_tokens) - len(sequence.block_table)
        self.held.give_way(missing)
        while missing > self.pool.num_free:
            youngest = self.running[-1]
            if youngest.ends_with_promise:
                return False  # its blocks are free once that is read, in this very step
            self._preempt(youngest)
            if youngest is sequence:
                return False
        if missing > 0:
            sequence.block_table += self.pool.allocate(missing)
        return True

    def _admit(self, budget: int) -> list[Scheduled]:
        planned = []
        while self.waiting and budget > 0 and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            is_late = _scores(sequence) and self._unscored == 0
            if is_late or _waits_for_leader(sequence) or not self._take_blocks(sequence):
                break
            self.waiting.popleft()
            sequence.state = SequenceState.RUNNING
            if sequence.started_at is None:
                sequence.started_at = time.monotonic()
            self.running.append(sequence)
            count = self._share(sequence, budget)
            planned.append(Scheduled.of(sequence, count))
            budget -= count
        return planned

    def _take_blocks(self, sequence: Sequence) -> bool:
        """Give a waiting sequence all blocks for what is known of it, cached ones first."""
        # At least one token must be computed, for its logits.
        may_reuse = self.reuses_prefixes and _may_reuse(sequence)
        ids = sequence.token_ids[:-1] if may_reuse else []
        found = self.pool.find_prefix(ids, sequence.root)
        cached = [block.block_id for block in found]
        self.pool.share(cached)
        cold = self.pool.find_cold(ids, found, sequence.root)
        needed = self.pool.blocks_for(len(sequence.token_ids)) - len(cached)
        self.held.give_way(needed)
        if needed > self.pool.num_free:
            self.pool.release(cached)
            return False
        fresh = self.pool.allocate(needed)
        self.pool.bring_back(cold, fresh[: len(cold)])
        sequence.block_table = cached + fresh
        sequence.prefix_names = [one.name for one in found] + [one.name for one in cold]
        sequence.num_computed = len(sequence.prefix_names) * self.pool.block_size
        if sequence.num_preemptions == 0:
            sequence.num_cached = sequence.num_computed
        self.num_cached_tokens += sequence.num_computed
        self.num_restored_tokens += len(cold) * self.pool.block_size
        return True

    def _remember_blocks(self, sequence: Sequence) -> None:
        """Offer the blocks that a step has filled to later sequences.

        Where a prompt has images, its ids do not tell what is in its blocks.
        """
        if sequence.images:
            return
        size, names = self.pool.block_size, sequence.prefix_names
        while (len(names) + 1) * size <= sequence.num_computed:
            start = len(names) * size
            parent = names[-1] if names else sequence.root
            ids = sequence.token_ids[start : start + size]
            names.append(self.pool.remember(sequence.block_table[len(names)], parent, ids))

    def _preempt(self, sequence: Sequence) -> None:
        self._release_blocks(sequence)
        self.running.remove(sequence)
        sequence.state = SequenceState.WAITING
        sequence.num_computed = 0
        sequence.promise = None
        if not sequence.has_prompt_logprobs:
            sequence.prompt_logprobs = []
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _release_blocks(self, sequence: Sequence) -> None:
        self.pool.release(sequence.block_table)
        sequence.block_table = []
        sequence.prefix_names = []


def _scores(sequence: Sequence) -> bool:
    """Whether log-probabilities of its prompt are still to be told."""
    return sequence.params.prompt_logprobs and not sequence.has_prompt_logprobs


def _waits_for_leader(sequence: Sequence) -> bool:
    """Whether another sequence of its request is about to compute the prompt for both."""
    leader = sequence.leader
    has_started = sequence.started_at is not None
    if leader is None or has_started or leader.state is SequenceState.FINISHED:
        return False
    return not leader.is_prompt_computed


def _may_reuse(sequence: Sequence) -> bool:
    """Images are not told by ids; log-probabilities of the prompt need logits, never cached."""
    return not sequence.images and not _scores(sequence)
