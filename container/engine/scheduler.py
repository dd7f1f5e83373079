"""The scheduler: decides which sequences run in the next step.

Knows tokens and blocks, never tensors or text; owned by the engine. First come, first served:
running sequences are scheduled first, oldest first; then waiting ones are admitted while the
budget and the blocks last. Without free blocks the youngest running sequence is preempted: its
blocks are freed and it waits at the front of the queue, to be recomputed. The oldest is never
preempted for another, so it always finishes.

With `speculate`, a decode may compute up to that many draft tokens in the same step; the sequence
advances by the accepted ones as well.

The prompt of a recurrent model is split at multiples of `chunk_multiple`, so that its states do not
depend on the split.
"""

import time
from collections import deque
from collections.abc import Container, Iterable, Iterator

from container.engine.blocks.kv_cache_manager import KVCacheManager
from container.engine.model_runner import Sampled, StepOutput
from container.engine.schedule import Batch, ScheduledSequence
from container.engine.sequence import RequestKey, Sequence, SequenceState
from container.messages.engine import FinishReason

# Most prompt logprobs that one step computes: each takes a row of logits, for which a GPU has
# limited memory.
MAX_PROMPT_LOGPROBS = 256
# A sequence, its new token, and the finish reason if that token is its last.
NewToken = tuple[Sequence, Sampled, FinishReason | None]


class Scheduler:
    """Owns every unfinished sequence and the manager of its cache memory."""

    def __init__(
        self,
        kv_cache: KVCacheManager,
        *,
        max_batch_tokens: int,
        max_running: int,
        end_token_ids: Iterable[int],
        speculate: int = 0,
    ) -> None:
        self.kv_cache = kv_cache
        self.max_batch_tokens = max_batch_tokens
        self.max_running = max_running
        self.end_token_ids = frozenset(end_token_ids)
        self.speculate = speculate
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._prompt_logprobs_budget = MAX_PROMPT_LOGPROBS
        self.num_preemptions = 0
        self.num_drafted_tokens = 0
        self.num_accepted_tokens = 0

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        """Add a new sequence at the end of the waiting queue."""
        sequence.state = SequenceState.WAITING
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence, reason: FinishReason) -> None:
        """Finish a sequence in any state and free its blocks and its state slot."""
        if sequence.state is SequenceState.RUNNING:
            self.running.remove(sequence)
        elif sequence.state is SequenceState.WAITING:
            self.waiting.remove(sequence)
        self.kv_cache.finish(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason

    def schedule(self, only: Container[RequestKey] | None = None) -> Batch:
        """Plan the next step; empty if nothing can be computed before the in-flight step ends.

        `only`: the requests that it may run; it preempts all others, so that they hold no block.
        """
        self.kv_cache.pinned.expire()
        if only is not None:
            self.preempt_all(but=only)
        self._prompt_logprobs_budget = MAX_PROMPT_LOGPROBS
        planned, budget = self._continue_running(self.max_batch_tokens)
        planned += self._admit(budget, only)
        if not planned:
            return Batch(())
        items = tuple(self.kv_cache.reserve_snapshots(planned))
        return Batch(items, *self.kv_cache.take_copies())

    def update_after_schedule(self, batch: Batch) -> None:
        """Mark the batch's tokens as computed and set a placeholder for each sampled token.

        After this the next step can be scheduled before this one's output is read.
        """
        index = 0
        for item in batch.items:
            sequence = item.sequence
            sequence.num_computed += item.num_tokens
            self.kv_cache.cache_full_blocks(sequence)
            self.kv_cache.add_snapshots(item)
            if item.samples:
                sequence.placeholder = index
                index += 1 + len(item.draft)

    def preempt_all(self, but: Container[RequestKey] = ()) -> None:
        """Preempt all running sequences but those of some requests; they will be recomputed."""
        for sequence in reversed(list(self.running)):
            if sequence.key not in but:
                self._preempt(sequence)

    def set_limits(self, max_running: int, max_batch_tokens: int) -> None:
        """Change the limits of a batch; sequences beyond them are preempted."""
        self.max_running, self.max_batch_tokens = max_running, max_batch_tokens
        while len(self.running) > max_running:
            self._preempt(self.running[-1])

    def update_from_output(self, batch: Batch, output: StepOutput) -> list[NewToken]:
        """Append a step's output to its sequences and return all new tokens, in order.

        `update_after_schedule` must have been called with the same batch before.
        """
        sampled = iter(output.sampled)
        new_tokens: list[NewToken] = []
        for index, item in enumerate(batch.items):
            # Consume all of an item's tokens, though only those up to a rejected draft count.
            count = 1 + len(item.draft) if item.samples else 0
            tokens = [next(sampled) for _ in range(count)]
            if item.is_stale:
                continue
            sequence = item.sequence
            sequence.prompt_logprobs += output.prompt_logprobs.get(index, [])
            sequence.prompt_tops += output.prompt_tops.get(index, [])
            if not tokens:
                continue
            new_tokens += self._append_tokens(item, tokens)
            if item.draft:
                self.kv_cache.cache_full_blocks(sequence)
            if sequence.finish_reason is not None:
                self.remove(sequence, sequence.finish_reason)
        return new_tokens

    def _append_tokens(self, item: ScheduledSequence, tokens: list[Sampled]) -> list[NewToken]:
        sequence, new_tokens = item.sequence, []
        sequence.placeholder = None
        self.num_drafted_tokens += len(item.draft)
        for token, draft_id in zip(tokens, [*item.draft, None], strict=True):
            sequence.append(token.token_id, self.end_token_ids)
            new_tokens.append((sequence, token, sequence.finish_reason))
            if sequence.finish_reason is not None or token.token_id != draft_id:
                break
            sequence.num_computed += 1
            self.num_accepted_tokens += 1
        return new_tokens

    def check_invariants(self) -> None:
        """Assert the invariants that hold between any two steps."""
        self.kv_cache.check_invariants(self.running, self.waiting)
        for sequence in self.running:
            assert sequence.state is SequenceState.RUNNING
            assert sequence.num_to_compute >= 1
        for sequence in self.waiting:
            assert sequence.state is SequenceState.WAITING
            assert sequence.num_computed == 0
        assert len(self.running) <= self.max_running

    def _continue_running(self, budget: int) -> tuple[list[ScheduledSequence], int]:
        planned: list[ScheduledSequence] = []
        # Decodes first: a long prefill must not take the token budget from streaming requests.
        order = sorted(self.running, key=lambda sequence: sequence.num_to_compute > 1)
        for sequence in order:
            if budget == 0:
                break
            if sequence.state is not SequenceState.RUNNING:
                continue  # preempted earlier in this loop
            if sequence.is_last_token_pending or sequence.is_deferred:
                continue
            if self._waits_for_bitmask(sequence):
                continue
            count = self._num_tokens_for(sequence, budget)
            if count == 0 or not self._allocate_blocks(sequence, sequence.num_computed + count):
                continue
            item = self._with_draft(ScheduledSequence.of(sequence, count), budget - count)
            planned.append(item)
            budget -= count + len(item.draft)
        # A sequence may have been planned and then preempted for an older one.
        still_running = [item for item in planned if item.sequence.state is SequenceState.RUNNING]
        return still_running, self.max_batch_tokens - Batch(tuple(still_running)).num_tokens

    def _num_tokens_for(self, sequence: Sequence, budget: int) -> int:
        """Number of tokens of a sequence that this step computes."""
        count = min(sequence.num_to_compute, budget)
        if sequence.lacks_prompt_logprobs:
            count = min(count, self._prompt_logprobs_budget)
        if count < sequence.num_to_compute:
            count = sequence.chunk_len(self._aligned(sequence, count))
        if sequence.lacks_prompt_logprobs:
            self._prompt_logprobs_budget -= count
        return count

    def _aligned(self, sequence: Sequence, count: int) -> int:
        """Shorten a chunk to end at a multiple of `chunk_multiple`, and to leave no single token.

        Not if decodes might never leave as many tokens of the budget.
        """
        multiple = self.kv_cache.chunk_multiple
        if multiple == 1 or self.max_batch_tokens - self.max_running <= multiple:
            return count
        count -= (sequence.num_computed + count) % multiple
        return max(0, count - multiple if sequence.num_to_compute - count == 1 else count)

    def _waits_for_bitmask(self, sequence: Sequence) -> bool:
        """Whether a pass must wait for a bitmask: one without it would advance the states."""
        if self.kv_cache.states is None or sequence.constraint is None:
            return False
        return sequence.placeholder is not None or not sequence.constraint.is_ready

    def _with_draft(self, item: ScheduledSequence, budget: int) -> ScheduledSequence:
        """Add draft tokens to a decode if allowed, without taking another sequence's blocks."""
        sequence = item.sequence
        if not (self.speculate and item.is_decode and sequence.can_speculate):
            return item
        num_fitting = self.kv_cache.num_drafts_fitting(item)
        num_remaining = sequence.params.max_new_tokens - sequence.completion_len - 1
        max_drafted = min(self.speculate, budget, num_remaining, num_fitting)
        draft = sequence.propose_draft(max(0, max_drafted))
        if draft:
            self.kv_cache.grow(sequence, item.end + len(draft))
        return ScheduledSequence.of(sequence, item.num_tokens, draft)

    def _allocate_blocks(self, sequence: Sequence, num_tokens: int) -> bool:
        """Allocate blocks for `num_tokens` tokens of a running sequence, preempting younger ones.

        Returns whether the sequence has the blocks; False if it was preempted itself or must wait.
        """
        while not self.kv_cache.grow(sequence, num_tokens):
            youngest = self.running[-1]
            if youngest.is_last_token_pending:
                return False  # its blocks become free when this step reads the pending token
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _admit(self, budget: int, only: Container[RequestKey] | None) -> list[ScheduledSequence]:
        planned = []
        for sequence in list(self.waiting):
            if budget == 0 or len(self.running) >= self.max_running:
                break
            if only is not None and sequence.key not in only:
                continue
            if self._must_wait(sequence) or not self.kv_cache.allocate_prompt(sequence):
                break
            self.waiting.remove(sequence)
            sequence.state = SequenceState.RUNNING
            if sequence.started_at is None:
                sequence.started_at = time.monotonic()
            self.running.append(sequence)
            count = self._num_tokens_for(sequence, budget)
            if count == 0:
                break  # too little is left for a chunk; it is the first of the next step's
            planned.append(ScheduledSequence.of(sequence, count))
            budget -= count
        return planned

    def _must_wait(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence cannot start, even if there are blocks for it."""
        return (
            (sequence.lacks_prompt_logprobs and self._prompt_logprobs_budget == 0)
            or not self.kv_cache.has_free_slot
            or self._waits_for_bitmask(sequence)
            or _waits_for_prefill(sequence)
        )

    def _preempt(self, sequence: Sequence) -> None:
        self.kv_cache.free(sequence)
        self.running.remove(sequence)
        sequence.state = SequenceState.WAITING
        sequence.num_computed = 0
        sequence.placeholder = None
        if not sequence.has_prompt_logprobs:
            sequence.prompt_logprobs, sequence.prompt_tops = [], []
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(sequence)


def _waits_for_prefill(sequence: Sequence) -> bool:
    """Whether another sequence of its request will compute the prompt that both share."""
    prefill_parent = sequence.prefill_parent
    has_started = sequence.started_at is not None
    if prefill_parent is None or has_started or prefill_parent.state is SequenceState.FINISHED:
        return False
    return not prefill_parent.is_prompt_computed
