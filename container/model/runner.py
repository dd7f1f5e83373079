"""The runner: plans a step, runs one forward pass, samples. Owned by the engine's loop."""

import logging
from collections.abc import Callable

import torch

from container.engine.batch import Batch, Sampled, Scheduled, StepOutput
from container.engine.sequence import Sequence
from container.model.attention import PagedStep
from container.model.forward_plan import MIN_ROWS, ForwardPlan, make_plan
from container.model.int8 import RowKinds
from container.model.kernels import log_totals
from container.model.kv_cache import KVCache
from container.model.lora import Updates
from container.model.sampler import Sampler
from container.model.varlen import Kernel, VarlenTables

log = logging.getLogger(__name__)


class ForwardPass:
    """Makes tensors from a plan and runs the model; each process with a part of it has one."""

    def __init__(
        self,
        model: torch.nn.Module,
        cache: KVCache,
        device: torch.device,
        *,
        updates: Updates | None = None,
        kinds: RowKinds | None = None,
        kernel: Kernel = Kernel.REFERENCE,
    ) -> None:
        self.cache = cache
        self._kernel = kernel
        self._model = model
        self._device = device
        self._updates = updates
        self._kinds = kinds

    @torch.inference_mode()
    def run(self, plan: ForwardPlan) -> torch.Tensor:
        """Return the wanted logits [rows, vocabulary] in float32, until the next pass."""
        if self._updates is not None:
            self._updates.begin(plan.adapters)
        if self._kinds is not None:
            self._kinds.num_decodes = plan.num_decodes
        num_rows = len(plan.logit_rows)
        rows = plan.logit_rows + [0] * max(0, MIN_ROWS - num_rows)
        output = self._model(
            input_ids=self._tensor(plan.token_ids)[None],
            position_ids=self._tensor(plan.positions)[None],
            use_cache=False,
            logits_to_keep=self._tensor(rows),
            step=self._step(plan),
        )
        logits: torch.Tensor = output.logits[0, :num_rows]
        return logits.float().contiguous()

    def _step(self, plan: ForwardPlan) -> PagedStep:
        tables = None
        if self._kernel is not Kernel.REFERENCE:
            tables = VarlenTables.of(plan, self.cache, self._kernel)
        return PagedStep.of(plan, self.cache, self._device, tables)

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=self._device)


class TorchModelRunner:
    """Implements the engine's ModelRunner for a transformers causal language model.

    `tell` hands each plan to the other processes that have a part of the model.
    """

    def __init__(
        self,
        forward: ForwardPass,
        *,
        end_token_ids: frozenset[int] = frozenset(),
        tell: Callable[[ForwardPlan], None] | None = None,
    ) -> None:
        self._forward = forward
        self._sampler = Sampler(end_token_ids)
        self._tell = tell
        self._is_out_of_step = False

    def execute(self, batch: Batch) -> StepOutput:
        """Run one step."""
        sampling = [item for item in batch.items if item.samples]
        scoring = [item for item in batch.items if item.num_prompt_logprobs]
        try:
            sampled, scores = self._compute(batch, sampling, scoring)
        except torch.OutOfMemoryError:
            _tell_who(batch)
            raise
        place = {id(item): index for index, item in enumerate(batch.items)}
        return StepOutput(sampled, {place[id(item)]: told for item, told in scores})

    @torch.inference_mode()
    def _compute(
        self, batch: Batch, sampling: list[Scheduled], scoring: list[Scheduled]
    ) -> tuple[list[Sampled], list[tuple[Scheduled, list[float]]]]:
        sequences = _sampled_sequences(sampling)
        logits = self.logits(list(batch.items), sampling, scoring)
        count = len(sequences)
        sampled = self._sampler.sample(logits[:count], sequences) if sequences else []
        return sampled, _score_prompts(scoring, logits[count:])

    def logits(
        self,
        items: list[Scheduled],
        sampling: list[Scheduled],
        scoring: list[Scheduled],
    ) -> torch.Tensor:
        """Run one forward pass; return the logits that `make_plan` names, in float32."""
        cache = self._forward.cache
        plan = make_plan(
            items, sampling, scoring,
            block_size=cache.block_size, scratch_block=cache.scratch_block,
        )  # fmt: skip
        if self._tell is None:
            return self._forward.run(plan)
        if self._is_out_of_step:
            raise RuntimeError("the ranks are out of step, since a pass has failed on one of them")
        self._is_out_of_step = True
        self._tell(plan)
        logits = self._forward.run(plan)
        self._is_out_of_step = False
        return logits


def _tell_who(batch: Batch) -> None:
    """Name the requests of a step for which the memory was not enough, the largest first."""
    items = sorted(batch.items, key=lambda item: -item.end)
    told = [
        f"request {item.sequence.request_id} of {item.sequence.owner.decode() or 'nobody'} "
        f"({item.num_tokens} of {item.end} tokens)"
        for item in items
    ]
    log.error(
        "out of memory in a step of %d tokens: %s; the table at the start says what takes the "
        "memory, and CUDA_MEMORY_FRACTION or MAX_BATCH_PREFILL_TOKENS change it",
        batch.num_tokens, ", ".join(told),
    )  # fmt: skip


def _sampled_sequences(sampling: list[Scheduled]) -> list[Sequence]:
    """What each row of sampled logits belongs to: a sequence, or what its draft makes of it."""
    sequences = []
    for item in sampling:
        sequences.append(item.sequence)
        sequences += [item.sequence.ahead(item.draft[: i + 1]) for i in range(len(item.draft))]
    return sequences


def told_logprobs(logits: torch.Tensor, following: list[int]) -> list[float]:
    """The model's own log-probability of the token that follows each row of logits."""
    ids = torch.tensor(following, device=logits.device)
    chosen = logits.gather(-1, ids[:, None])[:, 0]
    told: list[float] = (chosen - log_totals(logits)).tolist()
    return told


def _score_prompts(
    scoring: list[Scheduled], logits: torch.Tensor
) -> list[tuple[Scheduled, list[float]]]:
    """The log-probability of each prompt token that follows a computed one."""
    told = []
    row = 0
    for item in scoring:
        count, first = item.num_prompt_logprobs, item.sequence.num_computed + 1
        following = item.sequence.token_ids[first : first + count]
        told.append((item, told_logprobs(logits[row : row + count], following)))
        row += count
    return told
