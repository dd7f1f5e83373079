"""The model runner: plans a step, runs one forward pass, samples."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import torch

from container.engine.model_runner import PendingStep, PromptLayout, StepOutput
from container.engine.schedule import Batch, BlockCopy, ScheduledSequence, StateCopy
from container.engine.sequence import Sequence
from container.errors import one_line
from container.model.async_copy import AsyncHostCopy, take_rows
from container.model.encoder_decoder.prompt_encoder import PromptEncoder
from container.model.execution.forward_pass import ForwardPass
from container.model.forward_batch import ForwardPlan, make_plan
from container.model.kernels.cpu import Kernels
from container.model.sampling.logprobs import PromptScores
from container.model.sampling.sampler import PendingSamples, Sampler
from container.model.vision.image_encoder import ImageEncoder
from container.model.vision.prompt_inputs import PromptInputs, StepInputs, step_inputs

log = logging.getLogger(__name__)

# torch's errors for too little memory, and for a failed kernel or failed hardware.
DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)
CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


class TorchModelRunner:
    """Implements the engine's ModelRunner for a transformers causal language model.

    `broadcast` sends each plan to the other ranks. With `overlaps` nothing here waits for the
    device except reading a step's output.
    """

    def __init__(
        self,
        forward: ForwardPass,
        *,
        end_token_ids: frozenset[int] = frozenset(),
        cpu_kernels: Kernels | None = None,
        broadcast: Callable[[ForwardPlan], None] | None = None,
        overlaps: bool = False,
        images: ImageEncoder | None = None,
        encoder: PromptEncoder | None = None,
    ) -> None:
        self.overlaps = overlaps
        self._images = images
        self._encoder = encoder
        self.forward = forward
        # A pass cannot be run again without advancing the states again.
        self.samples_in_execute = forward.states is not None
        self.sampler = Sampler(
            end_token_ids, kernels=cpu_kernels, counts_prompt=encoder is None,
            reads_logits=not overlaps,
        )  # fmt: skip
        self._broadcast = broadcast
        self._is_out_of_step = False
        # The last step's sampled tokens, on the device; the next plan's placeholders refer to them.
        self._sampled: torch.Tensor | None = None

    def prepare_prompt(self, sequence: Sequence, *, encodes: bool) -> "Future[PromptLayout] | None":
        """Begin to encode a prompt or its images in another thread."""
        encoder = self._encoder or self._images
        return None if encoder is None else encoder.prepare(sequence, encodes=encodes)

    def execute(self, batch: Batch) -> PendingStep:
        """Run a forward pass, or queue it on the device."""
        sampling = [item for item in batch.items if item.samples]
        scoring = [item for item in batch.items if item.num_prompt_logprobs]
        with naming_requests(batch):
            logits = self.logits(
                list(batch.items), sampling, scoring, batch.copies, batch.state_copies
            )
        return _TorchStep(self, logits, batch, sampling, scoring)

    def sample_async(self, logits: torch.Tensor, sequences: list[Sequence]) -> PendingSamples:
        """Sample the sequences' next tokens, to which the next plan's placeholders refer."""
        samples = self.sampler.sample_async(logits, sequences)
        self._sampled = samples.token_ids
        return samples

    def logits(
        self,
        items: list[ScheduledSequence],
        sampling: list[ScheduledSequence],
        scoring: list[ScheduledSequence],
        copies: tuple[BlockCopy, ...] = (),
        state_copies: tuple[StateCopy, ...] = (),
    ) -> torch.Tensor:
        """Run one forward pass; return the logits that `make_plan` names, in float32."""
        cache = self.forward.cache
        has_placeholders = any(item.sequence.placeholder is not None for item in items)
        sampled = self._sampled if has_placeholders else None
        plan = make_plan(
            items, sampling, scoring,
            block_size=cache.block_size, scratch_block=cache.scratch_block,
            num_placeholders=0 if sampled is None else len(sampled), copies=copies,
            state_copies=state_copies,
        )  # fmt: skip
        return self.run_plan(
            plan, sampled, self._image_inputs(items, plan), self._encoder_outputs(items)
        )

    def _image_inputs(self, items: list[ScheduledSequence], plan: ForwardPlan) -> StepInputs | None:
        """Return the inputs of the rows that belong to prompts with images."""
        if self._images is None:
            return None
        prompts: list[tuple[PromptInputs | None, int]] = []
        for item in items:
            if item.is_decode:
                continue
            needs_images = item.start < item.sequence.image_end
            inputs = self._images.inputs_of(item.sequence) if needs_images else None
            prompts.append((inputs, item.sequence.image_end))
        return step_inputs(plan, prompts)

    def _encoder_outputs(self, items: list[ScheduledSequence]) -> torch.Tensor | None:
        """Return the encoder's outputs for the prompts that begin in this step."""
        if self._encoder is None:
            return None
        begun = [item.sequence for item in items if item.writes_encoded]
        return torch.cat([self._encoder.outputs_of(each) for each in begun]) if begun else None

    def run_plan(
        self,
        plan: ForwardPlan,
        sampled: torch.Tensor | None = None,
        inputs: StepInputs | None = None,
        encoded: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run a pass on all ranks; see `ForwardPass.run`. Several ranks encode nothing."""
        if self._broadcast is None:
            return self.forward.run(plan, sampled, inputs, encoded)
        if self._is_out_of_step:
            raise RuntimeError(
                "the ranks are out of step because a pass failed on one of them; the engine must "
                "restart"
            )
        self._is_out_of_step = True
        self._broadcast(plan)
        logits = self.forward.run(plan, sampled)
        self._is_out_of_step = False
        return logits


class _TorchStep:
    """A step whose pass has begun. `logits` are those that `make_plan` names."""

    def __init__(
        self,
        runner: TorchModelRunner,
        logits: torch.Tensor,
        batch: Batch,
        sampling: list[ScheduledSequence],
        scoring: list[ScheduledSequence],
    ) -> None:
        self._runner = runner
        self._logits = logits
        self._batch = batch
        self._sampling = sampling
        self._scoring = scoring
        self._samples: PendingSamples | None = None
        self._scores: list[tuple[int, PromptScores]] = []
        self._host_copy = AsyncHostCopy()

    @torch.inference_mode()
    def sample(self, batch: Batch) -> None:
        """Sample the next tokens of these items, and compute prompt log-probabilities."""
        with naming_requests(batch):
            self._sample(batch)
        del self._logits  # the next pass needs the memory

    def _sample(self, batch: Batch) -> None:
        count = sum(1 + len(item.draft) for item in self._sampling)
        logits, scored = self._logits[:count], self._logits[count:]
        if batch is not self._batch:
            rows, self._sampling = self._left(batch)
            logits = take_rows(logits, rows)
        if self._scoring:
            index_of = {id(item): index for index, item in enumerate(batch.items)}
            self._scores = [
                (index_of[id(item)], scores.on_host(self._host_copy))
                for item, scores in _score_prompts(self._runner.sampler, self._scoring, scored)
                if id(item) in index_of
            ]
            self._host_copy.record(logits.device)
        if self._sampling:
            self._samples = self._runner.sample_async(logits, _sampled_sequences(self._sampling))

    def _left(self, batch: Batch) -> tuple[list[int], list[ScheduledSequence]]:
        """Return the sampling items that are still in the batch, and their rows."""
        left = {id(item) for item in batch.items}
        rows: list[int] = []
        row = 0
        for item in self._sampling:
            count = 1 + len(item.draft)
            rows += range(row, row + count) if id(item) in left else ()
            row += count
        return rows, [item for item in self._sampling if id(item) in left]

    def get_output(self) -> StepOutput:
        """Wait for the sampled tokens and return them."""
        with naming_requests(self._batch):
            sampled = self._samples.get_output() if self._samples is not None else []
            self._host_copy.wait()
        return StepOutput(
            sampled,
            {index: scores.chosen.tolist() for index, scores in self._scores},
            {index: scores.tops() for index, scores in self._scores},
        )


@contextmanager
def naming_requests(batch: Batch) -> Iterator[None]:
    """Log the requests of a step if the device fails in it. Raises MemoryError without memory."""
    try:
        yield
    except DEVICE_ERRORS as error:
        _log_requests(batch, error)
        if isinstance(error, torch.OutOfMemoryError):
            raise MemoryError(one_line(error)) from error
        raise
    except RuntimeError as error:
        if CPU_OUT_OF_MEMORY in str(error):
            raise MemoryError(one_line(error)) from error
        raise


def _log_requests(batch: Batch, error: Exception) -> None:
    """Log the requests of a step that the device could not run, the largest first."""
    items = sorted(batch.items, key=lambda item: -item.end)
    requests = ", ".join(
        f"request {item.sequence.request_id} of {item.sequence.frontend_id.decode() or 'nobody'} "
        f"({item.num_tokens} of {item.end} tokens)"
        for item in items
    )
    if isinstance(error, torch.OutOfMemoryError):
        log.error(
            "out of memory in a step of %d tokens: %s; the table in the log at start shows the "
            "memory use; lower CUDA_MEMORY_FRACTION or MAX_BATCH_PREFILL_TOKENS",
            batch.num_tokens, requests,
        )  # fmt: skip
        return
    log.error(
        "the GPU failed in a step of %d tokens, or in the one after it: %s; look in the kernel's "
        "log (dmesg) for an Xid of this time, which shows whether the hardware or a kernel is at "
        "fault: %s",
        batch.num_tokens, requests, one_line(error),
    )  # fmt: skip


def _sampled_sequences(sampling: list[ScheduledSequence]) -> list[Sequence]:
    """Return the sequence of each row of sampled logits; rows of a draft get a copy with it."""
    sequences = []
    for item in sampling:
        sequences.append(item.sequence)
        sequences += [item.sequence.with_draft(item.draft[: i + 1]) for i in range(len(item.draft))]
    return sequences


def _score_prompts(
    sampler: Sampler, scoring: list[ScheduledSequence], logits: torch.Tensor
) -> list[tuple[ScheduledSequence, PromptScores]]:
    """Compute the log-probability of each prompt token that follows a computed one."""
    scores = []
    row = 0
    for item in scoring:
        count, first = item.num_prompt_logprobs, item.start + 1
        following = item.sequence.token_ids[first : first + count]
        rows, params = logits[row : row + count], item.sequence.params
        scores.append((item, sampler.prompt_scores(rows, following, params)))
        row += count
    return scores
