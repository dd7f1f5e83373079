"""The transformers cache fallback (slower): a runner for models whose attention cannot be paged.

For ALiBi, encoder-decoders, linear attention and others: each sequence runs by itself with a cache
that the model creates, whose content is opaque here. The engine's blocks then only count tokens. A
cache that is not plain keys and values is not filled in chunks either: the prompt waits until its
last chunk is scheduled, and is computed as a whole.
"""

import functools
import inspect
import logging
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from container.engine.model_runner import StepOutput, SyncModelRunner
from container.engine.schedule import Batch, ScheduledSequence
from container.engine.sequence import Sequence, SequenceState
from container.messages.engine import SamplingParams
from container.model.checks.own_pass import OwnPass
from container.model.checks.schedule import CheckPrompt
from container.model.encoder_decoder.decoder import decoder_start
from container.model.execution.model_runner import naming_requests
from container.model.fallbacks import Fallbacks
from container.model.kernels.cpu import Kernels
from container.model.lora.layers import LoraLayers
from container.model.reference_check import Mismatch, Reference, row_error
from container.model.sampling.logprobs import PromptScores
from container.model.sampling.sampler import Sampler

log = logging.getLogger(__name__)

# Names of a model's cache, in its outputs and its arguments.
CACHE_NAMES = ("past_key_values", "cache_params", "state")

# The accepted distance of rows that the same operations computed on the same inputs.
SAME_TOLERANCE = 1e-3

# Of the ids of a cache check, the number that are decoded one by one.
NUM_DECODED = 6


class Progress:
    """The model's own cache of one sequence, and the number of tokens computed in it."""

    def __init__(self, num_preemptions: int) -> None:
        self.num_preemptions = num_preemptions
        self.num_computed = 0
        self.model_kwargs: dict[str, Any] = {}


class HFCacheRunner(SyncModelRunner):
    """Implements the engine's ModelRunner; runs one sequence after another."""

    def __init__(
        self,
        model: Any,
        device: torch.device,
        *,
        end_token_ids: frozenset[int] = frozenset(),
        cpu_kernels: Kernels | None = None,
        lora_layers: LoraLayers | None = None,
    ) -> None:
        self._model = model
        self._device = device
        self._has_encoder = bool(model.config.is_encoder_decoder)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._supports_logits_to_keep = bool(self._model._supports_logits_to_keep())
        self._sampler = Sampler(
            end_token_ids, kernels=cpu_kernels, counts_prompt=not self._has_encoder
        )
        self._lora_layers = lora_layers
        self._known: WeakKeyDictionary[Sequence, Progress] = WeakKeyDictionary()

    @functools.cached_property
    def _in_chunks(self) -> bool:
        """Whether the cache is plain keys and values, so that prompts can be chunked."""
        if self._has_encoder:
            return False
        cache = self._model(input_ids=self._tensor([0]), use_cache=True).get(CACHE_NAMES[0])
        plain = (DynamicLayer, DynamicSlidingWindowLayer)
        return cache is not None and all(type(layer) in plain for layer in cache.layers)

    def run(self, batch: Batch) -> StepOutput:
        """Run one step."""
        self._forget_the_ended()
        last: list[torch.Tensor] = []
        scores: dict[int, PromptScores] = {}
        with naming_requests(batch), torch.inference_mode():
            for index, item in enumerate(batch.items):
                if not item.samples and not self._in_chunks:
                    continue
                rows, prompt_scores = self.advance(item)
                if prompt_scores is not None:
                    scores[index] = prompt_scores
                if item.samples:
                    last.append(rows[-1])
            sequences = [item.sequence for item in batch.items if item.samples]
            sampled = self._sampler.sample(torch.stack(last), sequences) if last else []
        return StepOutput(
            sampled,
            {index: prompt_scores.chosen.tolist() for index, prompt_scores in scores.items()},
            {index: prompt_scores.tops() for index, prompt_scores in scores.items()},
        )

    def advance(self, item: ScheduledSequence) -> tuple[torch.Tensor, PromptScores | None]:
        """Compute a sequence up to an item's end.

        Returns logits [rows, vocabulary] in float32, whose last row is the last token's, and the
        log-probabilities of the prompt tokens that follow a computed one, if requested.
        """
        sequence = item.sequence
        if self._lora_layers is not None:
            self._lora_layers.begin([(sequence.adapter, 1)])  # one adapter for all rows
        progress = self._known.get(sequence)
        if progress is None or progress.num_preemptions != sequence.num_preemptions:
            progress = self._known[sequence] = Progress(sequence.num_preemptions)
        if self._has_encoder:
            return self._decode(progress, item), None
        start = progress.num_computed
        wants_scores = sequence.lacks_prompt_logprobs
        num_scores = min(item.end, sequence.prompt_len - 1) - start if wants_scores else 0
        num_rows = item.end - start if num_scores > 0 else 1
        logits = self._read_on(progress, item, num_rows)
        if num_scores <= 0:
            return logits, None
        following = sequence.token_ids[start + 1 : start + 1 + num_scores]
        return logits, self._sampler.prompt_scores(logits[:num_scores], following, sequence.params)

    def _read_on(self, progress: Progress, item: ScheduledSequence, num_rows: int) -> torch.Tensor:
        """Run the ids that are not computed yet; return the last `num_rows` rows of logits."""
        start = progress.num_computed
        ids = item.sequence.token_ids[start : item.end]
        if self._takes_positions:  # as `generate` gives them; some models count from 0 otherwise
            progress.model_kwargs["position_ids"] = self._tensor(list(range(start, item.end)))
        return self._forward(progress, num_rows, input_ids=self._tensor(ids))

    def _decode(self, progress: Progress, item: ScheduledSequence) -> torch.Tensor:
        """Run the prompt through the encoder once, and the completion through the decoder."""
        sequence = item.sequence
        if "encoder_outputs" not in progress.model_kwargs:
            encoder = self._model.get_encoder()
            prompt = self._tensor(sequence.token_ids[: sequence.prompt_len])
            progress.model_kwargs["encoder_outputs"] = encoder(input_ids=prompt, return_dict=True)
        decoder_ids = (
            decoder_start(self._model) + sequence.token_ids[sequence.prompt_len : item.end]
        )
        ids = self._tensor(decoder_ids[progress.num_computed :])
        return self._forward(progress, 1, decoder_input_ids=ids)

    def _forward(self, progress: Progress, num_rows: int, **ids: torch.Tensor) -> torch.Tensor:
        options = {"logits_to_keep": num_rows} if self._supports_logits_to_keep else {}
        output = self._model(
            **ids, **progress.model_kwargs, **options, use_cache=True, return_dict=True
        )
        for name in CACHE_NAMES:
            if output.get(name) is not None:
                progress.model_kwargs[name] = output[name]
        progress.num_computed += sum(tensor.shape[1] for tensor in ids.values())
        logits: torch.Tensor = output.logits[0, -num_rows:]
        return logits.float()

    def _forget_the_ended(self) -> None:
        """Free the caches of finished and preempted sequences before garbage collection does."""
        for sequence in list(self._known):
            if sequence.state is not SequenceState.RUNNING:
                del self._known[sequence]

    def _tensor(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self._device)


@torch.inference_mode()
def check_hf_cache(
    model: PreTrainedModel,
    ids: list[int],
    device: torch.device,
    fallbacks: Fallbacks,
    runner_class: type[HFCacheRunner] = HFCacheRunner,
) -> None:
    """Compare decoding with the cache to a pass without it, on a prompt. Raises Mismatch.

    A model whose own two ways differ is compared with its way with a cache, and a warning logged.
    """
    prompt_len = len(ids) - NUM_DECODED
    whole = torch.tensor([ids], device=device)

    def run() -> torch.Tensor:
        if model.config.is_encoder_decoder:
            start = torch.tensor([decoder_start(model) + ids[prompt_len:]], device=device)
            prompt = whole[:, :prompt_len]
            output = model(input_ids=prompt, decoder_input_ids=start, use_cache=False)
        else:
            output = model(input_ids=whole, use_cache=False)
        rows: torch.Tensor = output.logits[0, -NUM_DECODED - 1 :]
        return rows.clone()

    runner, sequence = runner_class(model, device), _sequence(ids, prompt_len)
    ends = range(prompt_len, len(ids) + 1)
    rows = [runner.advance(ScheduledSequence.of(sequence, end))[0][-1] for end in ends]
    served = torch.stack(rows)
    try:
        Reference(model, run, model.dtype, fallbacks).check(served, "the model's own cache")
    except Mismatch as error:
        if runner_class is not HFCacheRunner or model.config.is_encoder_decoder:
            raise
        _check_cached_pass(model, ids, prompt_len, served)
        log.warning(
            "the model computes differently with its cache and without: %s; the server uses the "
            "cache, as transformers' generate does", error,
        )  # fmt: skip


def _check_cached_pass(
    model: PreTrainedModel, ids: list[int], prompt_len: int, served: torch.Tensor
) -> None:
    """Compare with the model's own pass with its cache, token by token. Raises Mismatch."""
    own_pass = OwnPass(model, CheckPrompt(ids), prompt_len)
    deque(own_pass.run(), 0)
    off = row_error(served, own_pass.logits[prompt_len - 1 :])
    if not off <= SAME_TOLERANCE:
        raise Mismatch(f"the model's own cache is off by {off:.2g} (limit {SAME_TOLERANCE})")


@torch.inference_mode()
def memory_needs(
    model: PreTrainedModel, device: torch.device, runner_class: type[HFCacheRunner] = HFCacheRunner
) -> tuple[int, int]:
    """Measure the bytes per token and per sequence of the model's cache."""
    short, long = 8, 24
    sizes = []
    for count in (short, long):
        runner, sequence = runner_class(model, device), _sequence([0] * count, count)
        runner.advance(ScheduledSequence.of(sequence, count))
        sizes.append(_num_bytes(runner._known[sequence].model_kwargs, set()))
    per_token = max(0, sizes[1] - sizes[0]) // (long - short)
    return max(1, per_token), max(0, sizes[0] - short * per_token)


def _sequence(ids: list[int], prompt_len: int) -> Sequence:
    sequence = Sequence(0, ids[:prompt_len], SamplingParams(max_new_tokens=len(ids)))
    sequence.token_ids = ids
    return sequence


def _num_bytes(value: object, visited: set[int]) -> int:
    """Sum the bytes of all tensors in a cache of any structure."""
    if id(value) in visited:
        return 0
    visited.add(id(value))
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    parts: list[object] = []
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif hasattr(value, "__dict__"):
        parts = list(vars(value).values())
    return sum(_num_bytes(part, visited) for part in parts)
