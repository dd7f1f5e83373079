"""The model runner: plans a step, runs one forward pass, samples."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from container.engine.model_runner import RunningStep, StepOutput
from container.engine.schedule import Batch, Move, Scheduled
from container.engine.sequence import Sequence
from container.errors import one_line
from container.model.async_copy import Arrivals, take_rows
from container.model.execution.forward_pass import ForwardPass
from container.model.forward_batch import ForwardPlan, make_plan
from container.model.sampling.logprobs import told_logprobs
from container.model.sampling.sampler import Drawn, Sampler

log = logging.getLogger(__name__)

# What torch raises when memory is not enough, or when a kernel or the hardware has failed.
DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)


class TorchModelRunner:
    """Implements the engine's ModelRunner for a transformers causal language model.

    `tell` hands each plan to the other processes that have a part of the model. With `overlaps`
    nothing here waits for the device but the reading of a step.
    """

    def __init__(
        self,
        forward: ForwardPass,
        *,
        end_token_ids: frozenset[int] = frozenset(),
        tell: Callable[[ForwardPlan], None] | None = None,
        overlaps: bool = False,
    ) -> None:
        self.overlaps = overlaps
        self.forward = forward
        self._sampler = Sampler(end_token_ids, reads_logits=not overlaps)
        self._tell = tell
        self._is_out_of_step = False
        # What the last step has sampled, where the logits are: promises of the next are about it.
        self._sampled: torch.Tensor | None = None

    def begin(self, batch: Batch) -> RunningStep:
        """Run a forward pass, or queue it."""
        sampling = [item for item in batch.items if item.samples]
        scoring = [item for item in batch.items if item.num_prompt_logprobs]
        with _naming(batch):
            logits = self.logits(list(batch.items), sampling, scoring, batch.moves)
        return _TorchStep(self, logits, batch, sampling, scoring)

    def draw(self, logits: torch.Tensor, sequences: list[Sequence]) -> Drawn:
        """Pick the sequences' next tokens, to which the promises of the next plan refer."""
        drawn = self._sampler.draw(logits, sequences)
        self._sampled = drawn.token_ids
        return drawn

    def logits(
        self,
        items: list[Scheduled],
        sampling: list[Scheduled],
        scoring: list[Scheduled],
        moves: tuple[Move, ...] = (),
    ) -> torch.Tensor:
        """Run one forward pass; return the logits that `make_plan` names, in float32."""
        cache = self.forward.cache
        has_promises = any(item.sequence.promise is not None for item in items)
        sampled = self._sampled if has_promises else None
        plan = make_plan(
            items, sampling, scoring,
            block_size=cache.block_size, scratch_block=cache.scratch_block,
            num_promised=0 if sampled is None else len(sampled), moves=moves,
        )  # fmt: skip
        return self.run_plan(plan, sampled)

    def run_plan(self, plan: ForwardPlan, sampled: torch.Tensor | None = None) -> torch.Tensor:
        """Run a pass on all ranks; see `ForwardPass.run`."""
        if self._tell is None:
            return self.forward.run(plan, sampled)
        if self._is_out_of_step:
            raise RuntimeError("the ranks are out of step, since a pass has failed on one of them")
        self._is_out_of_step = True
        self._tell(plan)
        logits = self.forward.run(plan, sampled)
        self._is_out_of_step = False
        return logits


class _TorchStep:
    """A step whose pass has been begun. `logits` are those that `make_plan` names."""

    def __init__(
        self,
        runner: TorchModelRunner,
        logits: torch.Tensor,
        batch: Batch,
        sampling: list[Scheduled],
        scoring: list[Scheduled],
    ) -> None:
        self._runner = runner
        self._logits = logits
        self._batch = batch
        self._sampling = sampling
        self._scoring = scoring
        self._drawn: Drawn | None = None
        self._scores: list[tuple[int, torch.Tensor]] = []
        self._arrivals = Arrivals()

    @torch.inference_mode()
    def sample(self, batch: Batch) -> None:
        """Pick the next tokens of these items, and score the prompts' tokens."""
        with _naming(batch):
            self._sample(batch)
        del self._logits  # the next pass needs the memory

    def _sample(self, batch: Batch) -> None:
        count = sum(1 + len(item.draft) for item in self._sampling)
        logits, scored = self._logits[:count], self._logits[count:]
        if batch is not self._batch:
            rows, self._sampling = self._left()
            logits = take_rows(logits, rows)
        if self._scoring:
            place = {id(item): index for index, item in enumerate(batch.items)}
            self._scores = [
                (place[id(item)], self._arrivals.start(told))
                for item, told in _score_prompts(self._scoring, scored)
                if id(item) in place
            ]
            self._arrivals.seal(logits.device)
        if self._sampling:
            self._drawn = self._runner.draw(logits, _sampled_sequences(self._sampling))

    def _left(self) -> tuple[list[int], list[Scheduled]]:
        """Rows of the sampling items that still go on, and these items. None has a draft."""
        rows = [row for row, item in enumerate(self._sampling) if not item.is_void]
        return rows, [self._sampling[row] for row in rows]

    def read(self) -> StepOutput:
        """Wait for what was sampled."""
        with _naming(self._batch):
            sampled = self._drawn.read() if self._drawn is not None else []
            self._arrivals.wait()
        return StepOutput(sampled, {index: told.tolist() for index, told in self._scores})


@contextmanager
def _naming(batch: Batch) -> Iterator[None]:
    """Name the requests of a step if the device fails in it."""
    try:
        yield
    except DEVICE_ERRORS as error:
        _tell_who(batch, error)
        raise


def _tell_who(batch: Batch, error: Exception) -> None:
    """Name the requests of a step that the device could not run, the largest first."""
    items = sorted(batch.items, key=lambda item: -item.end)
    told = ", ".join(
        f"request {item.sequence.request_id} of {item.sequence.owner.decode() or 'nobody'} "
        f"({item.num_tokens} of {item.end} tokens)"
        for item in items
    )
    if isinstance(error, torch.OutOfMemoryError):
        log.error(
            "out of memory in a step of %d tokens: %s; the table at the start says what takes the "
            "memory, and CUDA_MEMORY_FRACTION or MAX_BATCH_PREFILL_TOKENS change it",
            batch.num_tokens, told,
        )  # fmt: skip
        return
    log.error(
        "the GPU failed in a step of %d tokens, or in the one after it: %s; the kernel's log "
        "(dmesg) may have an Xid of this time, which says whether the hardware or a kernel is at "
        "fault: %s",
        batch.num_tokens, told, one_line(error),
    )  # fmt: skip


def _sampled_sequences(sampling: list[Scheduled]) -> list[Sequence]:
    """What each row of sampled logits belongs to: a sequence, or what its draft makes of it."""
    sequences = []
    for item in sampling:
        sequences.append(item.sequence)
        sequences += [item.sequence.ahead(item.draft[: i + 1]) for i in range(len(item.draft))]
    return sequences


def _score_prompts(
    scoring: list[Scheduled], logits: torch.Tensor
) -> list[tuple[Scheduled, torch.Tensor]]:
    """The log-probability of each prompt token that follows a computed one."""
    told = []
    row = 0
    for item in scoring:
        count, first = item.num_prompt_logprobs, item.start + 1
        following = item.sequence.token_ids[first : first + count]
        told.append((item, told_logprobs(logits[row : row + count], following)))
        row += count
    return told
