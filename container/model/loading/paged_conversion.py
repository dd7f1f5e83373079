"""Converts a transformers model to paged attention, and checks that its results stay the same.

There is no list of supported models: the model is probed and run. Its layers must call
transformers' attention interface, compute attention in a way that can be traced, or be mixers that
keep their states in transformers' cache; they must cache nothing else (no windows that only its
masks have); and they must return the same logits.
"""

import contextlib
import functools
import logging
from dataclasses import dataclass
from itertools import islice

import torch
from transformers import PreTrainedModel

from container.errors import ConfigError
from container.errors import one_line as describe
from container.model.attention import latent, paged
from container.model.attention.positions import follow_positions
from container.model.attention.traced import NotTraceable
from container.model.attention.varlen import REFERENCE_ONLY, AttentionKernels
from container.model.checks.layer_check import (
    EXACT_TOLERANCE,
    ReferencePass,
    Rows,
)
from container.model.checks.layer_probe import (
    NotPageable,
    ProbedLayers,
    check_cached_kinds,
    probe_layers,
    set_attention,
)
from container.model.checks.schedule import num_blocks, plan_schedule
from container.model.checks.state_probe import probe_mixers
from container.model.execution.forward_pass import ForwardPass
from container.model.kernels.cpu import Kernels
from container.model.kv_cache.cache import (
    BLOCK_SIZE,
    NO_KEYS,
    KVCache,
    LayerShape,
    fill_stale,
)
from container.model.layers.cpu_linear import LinearFactory
from container.model.layers.int8_linear import BatchPhase
from container.model.layers.linear import MakeLinear, PlainLinear
from container.model.loaded_model import uses_device_map
from container.model.loading.attention_backend import choose_kernels
from container.model.loading.quantization import rounding
from container.model.optimize.compiling import compile_layers
from container.model.optimize.fusing import fuse_decoder_layers
from container.model.optimize.packing import keep_read_weights, pack
from container.model.optimize.stacking import stack_layers
from container.model.parallel.tensor_parallel import is_tensor_parallel
from container.model.reference_check import (
    EXACT_DTYPE,
    FOUR_BITS_TOLERANCE,
    REDUCED_TOLERANCE,
    WHOLE_TOLERANCE,
    Accuracy,
    Convert,
    Mismatch,
    logits_error,
)
from container.model.states.cache import StateCache
from container.model.states.mixers import RecurrentMixers

log = logging.getLogger(__name__)

# Steps of the whole model's check: chunks, and one with a decode beside a chunk.
WHOLE_STEPS = 3
# Tokens of a mixer's segment in the checks, whose prompts are short.
TRIAL_SEGMENT = 8


@dataclass(frozen=True, slots=True)
class PagedModel:
    """The shapes of each layer's cache, the kernels that attend to it, and recurrent mixers."""

    layers: list[LayerShape]
    kernels: AttentionKernels
    mixers: RecurrentMixers | None


@torch.inference_mode()
def convert_to_paged(
    module: PreTrainedModel,
    ids: list[int],
    device: torch.device,
    phase: BatchPhase | None = None,
    cache_dtype: torch.dtype | None = None,
    *,
    int4_weights: bool = False,
    cpu_kernels: Kernels | None = None,
    compiles: bool = False,
) -> PagedModel:
    """Convert a model to paged attention, and check it on a prompt with these ids.

    `phase` quantizes the weights to int8, `int4_weights` to int4; `cache_dtype` is the cache's
    dtype if not the model's; `compiles` runs the layers through torch.compile. Raises NotPageable
    and leaves the model unchanged, or Mismatch if the served form is less accurate than the
    model's own.
    """
    trial = convert(module, ids, device)
    if compiles and trial.mixers is not None:
        raise ConfigError(["COMPILE=1 cannot work here: the model is recurrent; leave it out"])
    dtype, ideal = trial.dtype, None
    is_reduced = phase is not None or int4_weights or cache_dtype is not None
    # A recurrence step by step rounds differently from one over a whole prompt, even if exact.
    if is_reduced or trial.mixers is not None:
        ideal = trial.run_exact(cache_dtype, rounding(phase, int4_weights=int4_weights))
    if compiles:
        compile_layers(module, trial.run_once)
    if trial.mixers is not None:
        keep_read_weights(module, trial.run_once)
    keeps_layers = compiles or uses_device_map(module)
    linears = LinearFactory(cpu_kernels)
    made = _choose_linears(phase, linears, int4_weights=int4_weights)
    _make_fast(module, trial, linears, made, keeps_layers=keeps_layers)
    attending = [at for at, shape in enumerate(trial.shapes) if shape != NO_KEYS]
    kernels = choose_kernels(
        [trial.shapes[at] for at in attending], [trial.layer_attn_params[at] for at in attending],
        dtype, cache_dtype or dtype, device,
    )  # fmt: skip
    trial.serve(cache_dtype or dtype, phase, kernels, ideal)
    trial.check_served()
    if not keeps_layers and module.device.type == "cpu":
        stack_layers(module, trial.run_once, trial, cpu_kernels)
    # Latents are multiplied in another order than the model's, which rounds differently too.
    is_reduced = is_reduced or any(shape.is_latent for shape in trial.shapes)
    limit = REDUCED_TOLERANCE if is_reduced else WHOLE_TOLERANCE
    trial.check_whole(FOUR_BITS_TOLERANCE if int4_weights else limit)
    return PagedModel(trial.shapes, kernels, trial.mixers)


def convert(module: PreTrainedModel, ids: list[int], device: torch.device) -> "PagedTrial":
    """Switch a model to paged attention, and compare the results in the exact format.

    On a CPU a model with latents keeps these, if that is as accurate. Raises NotPageable and leaves
    the model unchanged.
    """
    if device.type == "cpu" and any(hasattr(part, "expand_kv") for part in module.modules()):
        try:
            return _convert(module, ids, device, keeps_latents=True)
        except NotPageable as error:
            log.info("the cache holds expanded keys and values (more memory): %s", error)
    return _convert(module, ids, device)


def _convert(
    module: PreTrainedModel, ids: list[int], device: torch.device, *, keeps_latents: bool = False
) -> "PagedTrial":
    original = module.config._attn_implementation
    undo = contextlib.ExitStack()
    undo.callback(set_attention, module, original)
    try:
        if keeps_latents:
            latent.attach(module, undo)
        probe_ids = torch.tensor([ids[:2]], device=device)
        mixers = probe_mixers(module, probe_ids)
        if mixers is not None and (uses_device_map(module) or is_tensor_parallel(module)):
            raise NotPageable("it is recurrent, and its layers are on several devices")
        probed = probe_layers(module, probe_ids, undo, mixers)
        if probed.implementation == paged.NAME and mixers is None:
            follow_positions(module, ids, list(probed.variants), undo)
        set_attention(module, original)
        reference = ReferencePass(
            module, ids, probed.variants, probed.points, is_recurrent=mixers is not None
        )
        check_cached_kinds(reference.cache, mixers)
        probed.check_cache(reference.cache)
        reference.cache = None
        reference.compute_exact(module)
        set_attention(module, probed.implementation)
        if mixers is not None:
            mixers.install(module)
            undo.callback(mixers.uninstall, module)
        trial = PagedTrial(module, reference, probed, mixers, device)
        _check_exact(trial)
        if keeps_latents or probed.implementation != paged.NAME:  # there is another way
            trial.check_served()
    except Exception as error:  # a model that does not suit can fail anywhere
        undo.close()
        is_expected = isinstance(error, NotPageable | NotTraceable | Mismatch)
        raise NotPageable(str(error) if is_expected else describe(error)) from error
    return trial


def _check_exact(trial: "PagedTrial") -> None:
    """Compare in the exact format, with mixers that continue a prompt if they can."""
    try:
        trial.check_exact()
    except Mismatch:
        if trial.mixers is None:
            raise
        trial.mixers.continues = False
        trial.check_exact()


class PagedTrial:
    """Runs a paged model on the reference's prompt, with a new cache for each run."""

    def __init__(
        self,
        module: PreTrainedModel,
        reference: ReferencePass,
        probed: ProbedLayers,
        mixers: RecurrentMixers | None,
        device: torch.device,
    ) -> None:
        self.variants = reference.layers
        self.checked = reference.checked
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
        with self._reference.exactly(self._module, convert):
            return self._run(cache_dtype or EXACT_DTYPE[self.dtype])

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
        worst = 0.0
        for plan, positions in islice(plan_schedule(self._reference.ids, size), WHOLE_STEPS):
            got = forward.run(plan)
            expected = self._reference.logits[positions]
            worst = max(worst, logits_error(got, expected.to(got.device)))
        log.info("the whole model checked against its own pass: off by %.2g", worst)
        if not worst <= limit:
            raise Mismatch(f"the served model's logits are off by {worst:.2g} (limit {limit})")

    def run_once(self) -> None:
        """Run the whole model on the schedule's first step."""
        forward, size = self._forward(self._cache_dtype)
        plan, _ = next(iter(plan_schedule(self._reference.ids, size)))
        forward.run(plan)

    def _run(self, cache_dtype: torch.dtype, names: list[str] | None = None) -> Rows:
        forward, size = self._forward(cache_dtype)
        return self._reference.run(self._module, forward.run, size, names)

    def _forward(self, cache_dtype: torch.dtype) -> tuple[ForwardPass, int]:
        # Small blocks are the harder test, but GPU kernels do not support them.
        size = 4 if self._kernels == REFERENCE_ONLY else BLOCK_SIZE[self._device.type]
        cache = KVCache(
            self.shapes, num_blocks=num_blocks(self._reference.ids, size), block_size=size,
            dtype=cache_dtype, device=self._device,
        )  # fmt: skip
        states = self._states(cache_dtype)
        stale = states.tensors.values() if states is not None else ()
        for tensor in (*cache.keys, *cache.values, *stale):
            fill_stale(tensor)
        forward = ForwardPass(
            self._module, cache, self._device, phase=self._phase, kernels=self._kernels,
            states=states, mixers=self.mixers, segment=TRIAL_SEGMENT,
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


def _make_fast(
    module: PreTrainedModel,
    trial: PagedTrial,
    linears: LinearFactory,
    chosen: "Chosen",
    *,
    keeps_layers: bool,
) -> None:
    """Replace layers and linear layers by faster forms, and by the chosen ones of fewer bits.

    `keeps_layers` leaves decoder layers unchanged, because they are compiled, or because
    accelerate loads their weights from the disk or another device for each call.
    """
    make, make_head, is_quantized = chosen
    kernels = linears.kernels
    if keeps_layers:
        if is_quantized:
            pack(module, make, make_head, kernels=kernels)
    elif module.device.type != "cpu":
        plain = make if is_quantized else PlainLinear
        fuse_decoder_layers(module, trial.layer_attn_params, trial, plain, PlainLinear, None)
        if is_quantized:
            pack(module, make, make_head, kernels=kernels)
    elif linears.packs(trial.dtype):
        params = trial.layer_attn_params
        fuse_decoder_layers(module, params, trial, make, linears.linear, kernels)
        pack(module, make, make_head, kernels=kernels)
    elif is_quantized:
        pack(module, make, make_head, kernels=kernels)


# How to make the layers' linear layers, how to make the output layer, and whether with fewer bits.
Chosen = tuple[MakeLinear, MakeLinear, bool]


def _choose_linears(
    phase: BatchPhase | None, linears: LinearFactory, *, int4_weights: bool
) -> Chosen:
    """Choose the layers' linear layers, and the output layer, which has no phase.

    The output layer has eight bits at least: four would change the choice between likely tokens.
    """
    head = functools.partial(linears.int8, phase=None, fp32_out=True)
    if int4_weights:
        return linears.int4, head, True
    if phase is None:
        return linears.linear, linears.head, False
    return functools.partial(linears.int8, phase=phase), head, True
