"""Runs a model whose attention is paged beside its own pass, and measures how far they differ."""

import logging
import math
import time
from functools import partial
from itertools import islice

import torch
from transformers import PreTrainedModel

from container.model.attention.varlen import REFERENCE_ONLY, AttentionKernels
from container.model.checks.check_times import CheckTimes
from container.model.checks.layer_accuracy import Rows
from container.model.checks.layer_check import EXACT_TOLERANCE, ReferencePass
from container.model.checks.layer_probe import ProbedLayers
from container.model.checks.schedule import num_blocks, plan_schedule, prompt_len
from container.model.execution.forward_pass import ForwardPass
from container.model.fallbacks import Fallbacks
from container.model.forward_batch import ForwardPlan
from container.model.kv_cache.cache import BLOCK_SIZE, KVCache, RoundingKVCache, fill_stale
from container.model.layers.int8_linear import BatchPhase
from container.model.parallel.tensor_parallel import is_tensor_parallel
from container.model.reference_check import (
    EXACT_DTYPE,
    Accuracy,
    Convert,
    Mismatch,
    largest,
    logits_error,
)
from container.model.states.cache import StateCache
from container.model.states.mixers import RecurrentMixers
from container.model.vision.language_model import LanguageModel
from container.model.vision.prompt_inputs import PromptInputs, step_inputs

log = logging.getLogger(__name__)

# Steps of the whole model's check: chunks, and one with a decode beside a chunk.
WHOLE_STEPS = 3
# Tokens of a mixer's segment in the checks, whose prompts are short.
TRIAL_SEGMENT = 8
# The time limit of checking, in seconds for each checked layer, and of the whole model's steps.
# Beyond it only the first layer of each variant is checked, and one step of the whole model. The
# model's own pass, and with it those steps, leave out unchecked layers beyond its own limit.
LAYER_LIMIT_S, WHOLE_LIMIT_S, OWN_PASS_LIMIT_S = 30.0, 60.0, 20.0
LIMIT = "beyond the time limit of the checks"


def own_pass_limit(module: PreTrainedModel) -> float:
    """Return the seconds after which the own pass leaves out layers.

    Ranks have no time limits, since all must run the same.
    """
    return math.inf if is_tensor_parallel(module) else OWN_PASS_LIMIT_S


class PagedTrial:
    """Runs a paged model on the reference's prompt, with a new cache for each run."""

    def __init__(
        self,
        module: PreTrainedModel,
        reference: ReferencePass,
        probed: ProbedLayers,
        mixers: RecurrentMixers | None,
        device: torch.device,
        fallbacks: Fallbacks,
        times: CheckTimes,
        language_model: LanguageModel | None = None,
    ) -> None:
        """`times` are those of the checks so far; `not_proved` lists cases that they leave out."""
        self.fallbacks = fallbacks
        self.not_proved: list[str] = []
        self.variants = reference.layers
        self._times = times
        self._module = module
        self._reference = reference
        self.dtype = reference.dtype
        self.shapes = probed.shapes
        self.layer_attn_params = probed.layer_attn_params
        self.mixers = mixers
        self._device = device
        self._cache_dtype = reference.dtype
        self._phase: BatchPhase | None = None
        self._kernels = REFERENCE_ONLY
        self._ideal: Rows | None = None
        self._is_limited = not is_tensor_parallel(module)
        if skipped := reference.skips.names:
            self._leave_out(f"{_span(skipped)} in passes of the whole model: {LIMIT}")
        if left_out := reference.unchecked_layers():
            self._leave_out(
                f"{', '.join(left_out)}: the model has more kinds of layers than are checked"
            )
        self._language_model = language_model
        self._images: PromptInputs | None = None
        if language_model is not None:
            prompt = reference.prompt
            self._images = language_model.read_prompt(
                prompt.ids[: prompt_len(prompt.ids)], prompt.images
            )

    @property
    def has_experts(self) -> bool:
        """Whether checked layers choose experts for each token."""
        return self._reference.has_experts

    @property
    def checked(self) -> list[str]:
        """The layers that are checked, fewer after the time limit."""
        return self._reference.checked

    def serve(
        self,
        cache_dtype: torch.dtype,
        phase: BatchPhase | None,
        kernels: AttentionKernels,
        ideal: Rows | None,
    ) -> None:
        """Set the cache, weights and kernels of later runs to the served ones.

        `ideal` is the exact result with the weights or cache in fewer bits, or with recurrences in
        steps; its loss is accepted.
        """
        self._cache_dtype, self._phase, self._kernels = cache_dtype, phase, kernels
        self._ideal = ideal

    def run_exact(
        self, cache_dtype: torch.dtype | None = None, convert: Convert | None = None
    ) -> Rows:
        """Run the checked layers in the exact format, with this cache and converted weights."""
        self._keep_time()
        rows: Rows = {}
        for names in self._reference.groups(self._module):
            with self._reference.exactly(self._module, names, convert):
                rows |= self._run(EXACT_DTYPE[self.dtype], names, narrow=cache_dtype)
        return rows

    def check_exact(self) -> None:
        """Compare paged attention in the exact format. Raises Mismatch."""
        error = self._reference.exact_error(self.run_exact())
        log.debug("paged attention in the exact format: off by %.2g", error)
        if not error <= EXACT_TOLERANCE:
            raise Mismatch(
                f"paged attention differs from the model's own by {error:.2g} of a row "
                f"(limit {EXACT_TOLERANCE})"
            )

    def measure(self, names: list[str] | None = None) -> Accuracy:
        """Compare layers in their current form, by default the checked ones, with the model's."""
        self._keep_time()
        return self._reference.accuracy(self._run(self._cache_dtype, names), self._ideal)

    def check_served(self) -> None:
        """Compare the checked layers in their served form. Raises Mismatch."""
        accuracy = self.measure()
        log.info("layers checked against the model's own: off by %s", accuracy)
        if not accuracy.is_accepted:
            raise Mismatch(f"the served layers are off by {accuracy}")

    def check_whole(self, limit: float) -> None:
        """Compare the whole model's logits. Raises Mismatch if they have little in common.

        Rounding adds up over the layers, so this finds only faults between them.
        """
        forward, size = self._forward(self._cache_dtype)
        worst, started = 0.0, time.perf_counter()
        for at, step in enumerate(islice(plan_schedule(self._reference.prompt, size), WHOLE_STEPS)):
            is_late = time.perf_counter() - started > WHOLE_LIMIT_S
            if at and is_late and self._is_limited:
                self._leave_out(f"the whole model after {at} of {WHOLE_STEPS} steps: {LIMIT}")
                break
            with self._times.of_whole(), self._reference.skips.skipping(self._module):
                got = self._run_plan(forward, step.plan)
            expected = self._reference.logits[step.with_logits]
            worst = largest([worst, logits_error(got, expected.to(got.device))])
        log.info("the whole model checked against its own pass: off by %.2g", worst)
        if not worst <= limit:
            raise Mismatch(f"the served model's logits are off by {worst:.2g} (limit {limit})")

    def run_once(self) -> None:
        """Run the whole model on the schedule's first step."""
        forward, size = self._forward(self._cache_dtype)
        with self._times.of_whole():
            self._run_plan(forward, next(iter(plan_schedule(self._reference.prompt, size))).plan)

    def run_briefly(self) -> None:
        """Run the schedule's first step without the layers that are late: these return inputs."""
        with self._reference.skips.skipping(self._module):
            self.run_once()

    def _keep_time(self) -> None:
        """After the time limit, check only the first layer of each variant."""
        limit = LAYER_LIMIT_S * len(self.checked)
        if not self._is_limited or self._times.layers_s <= limit:
            return
        if left_out := self._reference.keep_first_layers():
            self._leave_out(f"{', '.join(left_out)} in all forms: {LIMIT}")

    def _leave_out(self, part: str) -> None:
        self.not_proved.append(part)
        log.warning("checks: not proved: %s", part)

    def _run(
        self,
        cache_dtype: torch.dtype,
        names: list[str] | None = None,
        narrow: torch.dtype | None = None,
    ) -> Rows:
        forward, size = self._forward(cache_dtype, narrow)
        run = partial(self._run_plan, forward)
        with self._times.of_layers():
            return self._reference.run(self._module, run, size, names)

    def _run_plan(self, forward: ForwardPass, plan: ForwardPlan) -> torch.Tensor:
        """Run a step of the schedule, in which all sequences have the same prompt."""
        if self._images is None:
            return forward.run(plan)
        prompts = [(self._images, self._reference.prompt.image_end)] * len(plan.chunks)
        return forward.run(plan, inputs=step_inputs(plan, prompts))

    def _forward(
        self, cache_dtype: torch.dtype, narrow: torch.dtype | None = None
    ) -> tuple[ForwardPass, int]:
        # Small blocks are the harder test, but GPU kernels do not support them.
        size = 4 if self._kernels == REFERENCE_ONLY else BLOCK_SIZE[self._device.type]
        create = KVCache if narrow is None else partial(RoundingKVCache, narrow=narrow)
        cache = create(
            self.shapes, num_blocks=num_blocks(self._reference.prompt.ids, size), block_size=size,
            dtype=cache_dtype, device=self._device,
        )  # fmt: skip
        states = self._states(cache_dtype)
        stale = states.tensors.values() if states is not None else ()
        for tensor in (*cache.keys, *cache.values, *stale):
            fill_stale(tensor)
        forward = ForwardPass(
            self._module, cache, self._device, phase=self._phase, kernels=self._kernels,
            states=states, mixers=self.mixers, segment=TRIAL_SEGMENT,
            language_model=self._language_model,
        )  # fmt: skip
        return forward, size

    def _states(self, cache_dtype: torch.dtype) -> StateCache | None:
        """Create a state cache for the schedule, wider for a pass in the exact format."""
        if self.mixers is None:
            return None
        exact = EXACT_DTYPE[self.dtype]
        return StateCache(
            self.mixers.shapes, num_slots=2, device=self._device,
            least_dtype=exact if cache_dtype == exact else None,
        )  # fmt: skip


def _span(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} layers from {names[0]} to {names[-1]}"
