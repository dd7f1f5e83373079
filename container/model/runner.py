"""The runner: plans a step, runs one forward pass, samples. Owned by the engine's loop."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from container.engine.batch import Batch, RunningStep, Scheduled, StepOutput
from container.engine.cold import Move
from container.engine.sequence import Sequence
from container.errors import one_line
from container.model.attention import PagedStep
from container.model.forward_plan import MIN_ROWS, ForwardPlan, make_plan
from container.model.graphs import Record, RecordedDecodes, fill_promises
from container.model.hf_config import text_config
from container.model.host_cache import HostCache
from container.model.int8 import RowKinds
from container.model.kernels import log_totals
from container.model.kv_cache import KVCache
from container.model.lora import Updates
from container.model.sampler import Drawn, Sampler
from container.model.sharding import least_over_ranks, share_first
from container.model.shortlist import take_rows
from container.model.transfer import Arrivals, to_device
from container.model.varlen import (
    REFERENCE_ONLY,
    AttentionKernels,
    DecodeTables,
    Kernel,
    VarlenTables,
)

log = logging.getLogger(__name__)

# What torch raises when memory is not enough, or when a kernel or the hardware has failed.
DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)


class ForwardPass:
    """Makes tensors from a plan and runs the model; each process with a part of it has one."""

    def __init__(
        self,
        model: Any,
        cache: KVCache,
        device: torch.device,
        *,
        updates: Updates | None = None,
        kinds: RowKinds | None = None,
        kernels: AttentionKernels = REFERENCE_ONLY,
        is_split: bool = False,
        host: HostCache | None = None,
    ) -> None:
        self.cache = cache
        self.host = host
        self._is_split = is_split
        self._kernels = kernels
        self._model = model
        self._device = device
        self._updates = updates
        self._kinds = kinds
        self._recorded: RecordedDecodes | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether decodes are CUDA graphs."""
        return self._recorded is not None

    @torch.inference_mode()
    def record(
        self, sizes: list[int], max_blocks: int, record: Record, progress: Callable[[str], None]
    ) -> None:
        """Record decodes of so many rows; the log says if that cannot be, or does not agree."""
        made = RecordedDecodes(
            self._call,
            self.cache,
            sizes=sizes,
            max_blocks=max_blocks,
            vocabulary=text_config(self._model.config).vocab_size,
            device=self._device,
            kernels=self._kernels,
        )
        if self._kinds is not None:
            self._kinds.num_decodes = max(sizes)
        works = True
        try:
            made.record(record, progress)
            made.check(self.run)
        except Exception as error:  # whatever a model does that cannot be recorded
            log.warning("decodes are not recorded: %s", one_line(error))
            works = False
        if self._is_split:
            works = bool(least_over_ranks(int(works)))
        if works:
            self._recorded = made

    @torch.inference_mode()
    def run(self, plan: ForwardPlan, sampled: torch.Tensor | None = None) -> torch.Tensor:
        """Return the wanted logits [rows, vocabulary] in float32, until the next pass.

        `sampled` is what the plan's promises are about; rank 0 alone has it.
        """
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # the engine's thread is not the one that loads
        if plan.moves:
            assert self.host is not None, "a slot that nobody has"
            self.host.move(plan.moves)
        if self._updates is not None:
            self._updates.begin(plan.adapters)
        if self._kinds is not None:
            self._kinds.num_decodes = plan.num_decodes
        if plan.num_promised and self._is_split:
            if sampled is None:
                sampled = torch.empty(plan.num_promised, dtype=torch.int64, device=self._device)
            share_first(sampled)
        if self._recorded is not None and self._recorded.fits(plan):
            return self._recorded.run(plan, sampled).index_select(0, self._tensor(plan.logit_rows))
        ids = self._tensor(plan.token_ids)
        if sampled is not None:
            ids = fill_promises(ids, sampled)
        num_rows = len(plan.logit_rows)
        rows = self._tensor(plan.logit_rows + [0] * max(0, MIN_ROWS - num_rows))
        logits = self._call(ids, self._tensor(plan.positions), self._step(plan), rows)
        return logits[:num_rows].contiguous()

    def _call(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        step: PagedStep,
        rows: torch.Tensor | int = 0,
    ) -> torch.Tensor:
        """Run the model; return logits [rows, vocabulary] in float32. No rows: all of them."""
        output = self._model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=rows,
            step=step,
        )
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def _step(self, plan: ForwardPlan) -> PagedStep:
        tables, decodes = None, None
        kernel = self._kernels.chunks
        if self._kernels.decodes is Kernel.TRITON and plan.num_decodes:
            decodes = DecodeTables.of(plan, self.cache, self._device)
        if kernel is not Kernel.REFERENCE and (decodes is None or plan.chunks):
            with_decodes = decodes is None
            tables = VarlenTables.of(plan, self.cache, kernel, with_decodes=with_decodes)
        return PagedStep.of(plan, self.cache, self._device, tables, decodes)

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return to_device(values, self._device, torch.int64)


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


def told_logprobs(logits: torch.Tensor, following: list[int]) -> torch.Tensor:
    """The model's own log-probability of the token that follows each row of logits: [rows]."""
    ids = to_device(following, logits.device)
    chosen = logits.gather(-1, ids[:, None])[:, 0]
    return chosen - log_totals(logits)


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
