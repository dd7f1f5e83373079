"""Paging: switches a transformers model to paged attention, and proves that nothing else changed.

Which models can be paged is not looked up in a list: the model is asked and run. It must call
transformers' attention interface in each layer, keep nothing in its own cache that attention does
not explain (recurrent states, windows that only its masks know), and give the same logits.
"""

import functools
import logging
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from container.errors import one_line as describe
from container.model.attention import paged
from container.model.attention.metadata import AttentionParams
from container.model.attention.varlen import REFERENCE_ONLY, AttentionKernels
from container.model.execution.forward_pass import ForwardPass
from container.model.kernels.cpu import Kernels
from container.model.kv_cache.cache import BLOCK_SIZE, KVCache, LayerShape, fill_stale
from container.model.layers.cpu_linear import LinearFactory
from container.model.layers.int8_linear import BatchPhase, quantized
from container.model.layers.linear import MakeLinear, PlainLinear
from container.model.loaded_model import uses_device_map
from container.model.loading.attention_backend import choose_kernels
from container.model.loading.layer_check import (
    EXACT_TOLERANCE,
    ReferencePass,
    Rows,
    num_blocks,
    plan_schedule,
)
from container.model.loading.optimize import compile_layers, fuse_decoder_layers, pack, stack_layers
from container.model.reference_check import (
    EXACT_DTYPE,
    REDUCED_TOLERANCE,
    WHOLE_TOLERANCE,
    Accuracy,
    Convert,
    Mismatch,
    logits_error,
)

log = logging.getLogger(__name__)

# Steps that the whole model is checked on: chunks, and one of a decode and a chunk.
WHOLE_STEPS = 3


@dataclass(frozen=True, slots=True)
class PagedModel:
    """What the cache keeps of each layer, and what attends to it."""

    layers: list[LayerShape]
    kernels: AttentionKernels


class NotPageable(Exception):
    """Why a model's attention is not paged."""


@torch.inference_mode()
def convert_to_paged(
    module: PreTrainedModel,
    ids: list[int],
    device: torch.device,
    phase: BatchPhase | None = None,
    cache_dtype: torch.dtype | None = None,
    *,
    cpu_kernels: Kernels | None = None,
    compiles: bool = False,
) -> PagedModel:
    """Switch a model to paged attention, and check it on a prompt with these ids.

    With `phase`, its weights get eight bits; `cache_dtype` is the cache's, if not the model's.
    `compiles`: its layers go through torch.compile. Raises NotPageable and leaves the model as it
    was, or Mismatch if what is served is less accurate than the model's own.
    """
    trial = convert(module, ids, device)
    dtype, ideal = trial.dtype, None
    if phase is not None or cache_dtype is not None:
        ideal = trial.run_exact(cache_dtype, dequantized if phase is not None else None)
    if compiles:
        compile_layers(module, trial.run_once)
    keeps_layers = compiles or uses_device_map(module)
    _make_fast(module, trial, phase, LinearFactory(cpu_kernels), keeps_layers=keeps_layers)
    kernels = choose_kernels(
        trial.shapes, trial.layer_attn_params, dtype, cache_dtype or dtype, device
    )
    trial.serve(cache_dtype or dtype, phase, kernels, ideal)
    trial.check_served()
    if not keeps_layers and module.device.type == "cpu":
        stack_layers(module, trial.run_once, trial, cpu_kernels)
    trial.check_whole(is_reduced=ideal is not None)
    return PagedModel(trial.shapes, kernels)


def convert(module: PreTrainedModel, ids: list[int], device: torch.device) -> "PagedTrial":
    """Switch a model to paged attention, and check in the exact format that it computes the same.

    Raises NotPageable and leaves the model as it was.
    """
    original = module.config._attn_implementation
    try:
        module.set_attn_implementation(paged.NAME)
        asked = _ask_layers(module, torch.tensor([ids[:2]], device=device))
        module.set_attn_implementation(original)
        reference = ReferencePass(module, ids, asked.kinds, asked.attentions)
        if _windows(reference.cache) != [
            attn_params.window for attn_params in asked.layer_attn_params
        ]:
            raise NotPageable("its own cache and its attention disagree about windows")
        reference.cache = None
        reference.compute_exact(module)
        module.set_attn_implementation(paged.NAME)
        trial = PagedTrial(module, reference, asked.shapes, asked.layer_attn_params, device)
        trial.check_exact()
    except Exception as error:  # a model that is not made for this fails anywhere
        module.set_attn_implementation(original)
        is_ours = isinstance(error, NotPageable | Mismatch)
        raise NotPageable(str(error) if is_ours else describe(error)) from error
    return trial


class PagedTrial:
    """Runs a paged model on the reference's prompt, with a cache of its own for each run."""

    def __init__(
        self,
        module: PreTrainedModel,
        reference: ReferencePass,
        shapes: list[LayerShape],
        layer_attn_params: list[AttentionParams],
        device: torch.device,
    ) -> None:
        self.kinds = reference.layers
        self.checked = reference.checked
        self._module = module
        self._reference = reference
        self.dtype = reference.dtype
        self.shapes = shapes
        self.layer_attn_params = layer_attn_params
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
        """Run as the model will be served from now on.

        `ideal`: the exact result with its weights or cache in fewer bits, whose loss is accepted.
        """
        self._cache_dtype, self._phase, self._kernels = cache_dtype, phase, kernels
        self._ideal = ideal

    def run_exact(
        self, cache_dtype: torch.dtype | None = None, convert: Convert | None = None
    ) -> Rows:
        """Run the checked layers in the exact format, with such a cache and converted weights."""
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
        """Compare layers, the checked ones by default, as they are now with the model's own."""
        return self._reference.accuracy(self._run(self._cache_dtype, names), self._ideal)

    def check_served(self) -> None:
        """Compare the checked layers as they are served. Raises Mismatch."""
        accuracy = self.measure()
        log.info("layers checked against the model's own: off by %s", accuracy)
        if not accuracy.is_accepted:
            raise Mismatch(f"the served layers are off by {accuracy}")

    def check_whole(self, *, is_reduced: bool) -> None:
        """Compare the whole model's logits. Raises Mismatch if they have little in common.

        Rounding adds up over the layers, so this finds only what is wrong between them.
        `is_reduced`: weights or cache have fewer bits than the model's.
        """
        limit = REDUCED_TOLERANCE if is_reduced else WHOLE_TOLERANCE
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
        """Run the whole model on the first step."""
        forward, size = self._forward(self._cache_dtype)
        plan, _ = next(iter(plan_schedule(self._reference.ids, size)))
        forward.run(plan)

    def _run(self, cache_dtype: torch.dtype, names: list[str] | None = None) -> Rows:
        forward, size = self._forward(cache_dtype)
        return self._reference.run(self._module, forward.run, size, names)

    def _forward(self, cache_dtype: torch.dtype) -> tuple[ForwardPass, int]:
        # Small blocks are the harder test, but kernels for GPUs do not take them.
        size = 4 if self._kernels == REFERENCE_ONLY else BLOCK_SIZE[self._device.type]
        cache = KVCache(
            self.shapes, num_blocks=num_blocks(self._reference.ids, size), block_size=size,
            dtype=cache_dtype, device=self._device,
        )  # fmt: skip
        for tensor in (*cache.keys, *cache.values):
            fill_stale(tensor)
        forward = ForwardPass(
            self._module, cache, self._device, phase=self._phase, kernels=self._kernels
        )
        return forward, size


def _make_fast(
    module: PreTrainedModel,
    trial: PagedTrial,
    phase: BatchPhase | None,
    linears: LinearFactory,
    *,
    keeps_layers: bool,
) -> None:
    """Replace layers and products by faster forms, and by smaller ones if `phase` asks for it.

    `keeps_layers`: the layers stay as they are, since they are compiled, or since their weights,
    which wait on disk or on another device, come and go.
    """
    make, make_head = _choose_linears(phase, linears)
    kernels = linears.kernels
    if keeps_layers:
        if phase is not None:
            pack(module, make, make_head, kernels=kernels)
    elif module.device.type != "cpu":
        plain = PlainLinear if phase is None else make
        fuse_decoder_layers(module, trial.layer_attn_params, trial, plain, PlainLinear, None)
        if phase is not None:
            pack(module, make, make_head, kernels=kernels)
    elif linears.packs(trial.dtype):
        params = trial.layer_attn_params
        fuse_decoder_layers(module, params, trial, make, linears.linear, kernels)
        pack(module, make, make_head, kernels=kernels)
    elif phase is not None:
        pack(module, make, make_head, kernels=kernels)


def _choose_linears(
    phase: BatchPhase | None, linears: LinearFactory
) -> tuple[MakeLinear, MakeLinear]:
    """What the layers' products become, and that of the output, whose rows are of no kind."""
    if phase is None:
        return linears.linear, linears.head
    return (
        functools.partial(linears.int8, phase=phase),
        functools.partial(linears.int8, phase=None, fp32_out=True),
    )


def dequantized(module: torch.nn.Module, name: str, weight: torch.Tensor) -> torch.Tensor:
    """Round a linear layer's weight to eight bits and back; leave all others."""
    if type(module) is not torch.nn.Linear or name != "weight":
        return weight
    numbers, scales = quantized(weight)
    return (numbers * scales[:, None]).to(weight.dtype)


def _windows(cache: Any) -> list[int | None]:
    """How far back each layer sees, as the model's own cache has it."""
    kinds = {type(layer) for layer in cache.layers}
    if kinds - {DynamicLayer, DynamicSlidingWindowLayer}:
        names = sorted(kind.__name__ for kind in kinds)
        raise NotPageable(f"it keeps more than keys and values ({', '.join(names)})")
    return [getattr(layer, "sliding_window", None) for layer in cache.layers]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What each layer tells its attention; `attentions` are the names of the modules that do."""

    shapes: list[LayerShape]
    layer_attn_params: list[AttentionParams]
    attentions: list[str]
    kinds: dict[str, Hashable]


def _ask_layers(module: PreTrainedModel, ids: torch.Tensor) -> _Asked:
    """Ask the model itself: run it once with an attention that only takes notes."""
    shapes: dict[int, LayerShape] = {}
    layer_attn_params: dict[int, AttentionParams] = {}
    attentions: dict[int, str] = {}
    names = {id(part): name for name, part in module.named_modules()}

    def note(layer_module, query, key, value, *_args, **kwargs):  # type: ignore[no-untyped-def]
        index = layer_module.layer_idx
        shapes[index] = LayerShape(key.shape[1], key.shape[-1], value.shape[-1], key.device)
        layer_attn_params[index] = AttentionParams.of(query, **kwargs)
        attentions[index] = names[id(layer_module)]
        out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])
        return out, None

    ALL_ATTENTION_FUNCTIONS.register(paged.NAME, note)
    try:
        module(input_ids=ids, use_cache=False)
    finally:
        ALL_ATTENTION_FUNCTIONS.register(paged.NAME, paged.paged_attention)
    order = sorted(shapes)
    if order != list(range(module.config.num_hidden_layers)):
        raise NotPageable("its layers compute attention in their own way")
    layers = [_layer_of(module, attentions[index]) for index in order]
    kinds: dict[str, Hashable] = {
        name: (_form(module.get_submodule(name)), layer_attn_params[index], shapes[index])
        for index, name in zip(order, layers, strict=True)
    }
    return _Asked(
        [shapes[index] for index in order], [layer_attn_params[index] for index in order],
        [attentions[index] for index in order], kinds,
    )  # fmt: skip


def _layer_of(module: PreTrainedModel, name: str) -> str:
    """The name of the decoder layer that a module is in: the element of a list of layers."""
    while name:
        parent, _, last = name.rpartition(".")
        if last.isdecimal() and isinstance(module.get_submodule(parent), torch.nn.ModuleList):
            return name
        name = parent
    raise NotPageable("its decoder layers are not in a list")


def _form(layer: torch.nn.Module) -> Hashable:
    """What layers that are alike have in common: classes and sizes."""
    sizes = tuple((name, tuple(part.shape)) for name, part in layer.named_parameters())
    return type(layer), sizes
