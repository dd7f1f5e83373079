"""Paging: switches a transformers model to paged attention, and proves that nothing else changed.

Which models can be paged is not looked up in a list: the model is asked and run. It must call
transformers' attention interface in each layer, keep nothing in its own cache that attention does
not explain (recurrent states, windows that only its masks know), and give the same logits.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from container.engine.batch import Scheduled
from container.engine.sequence import Sequence
from container.messages import SamplingParams
from container.model import attention, probe
from container.model.attention import Rule
from container.model.attention_check import choose_kernels
from container.model.compiling import compile_layers
from container.model.decoder_stack import stack_layers
from container.model.int8 import RowKinds
from container.model.kv_cache import BLOCK_SIZE, KVCache, LayerShape
from container.model.layers import make_lean
from container.model.packing import MakeLinear, PlainLinear, pack
from container.model.products import make_head, make_int8, make_linear, packing_works
from container.model.runner import ForwardPass, TorchModelRunner
from container.model.varlen import REFERENCE_ONLY, AttentionKernels

log = logging.getLogger(__name__)


def is_spread(module: PreTrainedModel) -> bool:
    """Whether accelerate has put its layers on several devices, or left some on disk."""
    devices = set((getattr(module, "hf_device_map", None) or {}).values())
    return len(devices) > 1 or "disk" in devices


@dataclass(frozen=True, slots=True)
class Paged:
    """What the cache keeps of each layer, and what attends to it."""

    layers: list[LayerShape]
    kernels: AttentionKernels


class CannotPage(Exception):
    """Why a model's attention is not paged."""


@torch.inference_mode()
def page(
    module: PreTrainedModel,
    dtype: torch.dtype,
    device: torch.device,
    kinds: RowKinds | None = None,
    cache_dtype: torch.dtype | None = None,
    *,
    compiles: bool = False,
) -> Paged:
    """Switch a model to paged attention.

    With `kinds`, its weights get eight bits; `cache_dtype` is the cache's, if not `dtype`.
    `compiles`: its layers go through torch.compile. Raises CannotPage and leaves the model as it
    was.
    """
    original = module.config._attn_implementation
    ids = torch.tensor([probe.ids_for(module)], device=device)
    try:
        whole = module(input_ids=ids, use_cache=False).logits[0].float()
        expected = whole[probe.PROMPT_LEN - 1 :]
        windows = _windows(module, ids)
        module.set_attn_implementation(attention.NAME)
        layers, rules = _ask_layers(module, ids)
        if windows != [rule.window for rule in rules]:
            raise CannotPage("its own cache and its attention disagree about windows")
        run = functools.partial(_logits, module, ids, layers, dtype, device)
        probe.check_same(run(), expected, dtype, "paged attention")
    except Exception as error:  # a model that is not made for this fails anywhere
        module.set_attn_implementation(original)
        raise CannotPage(f"{type(error).__name__}: {error}") from error
    if compiles:
        compile_layers(module, run)
    _make_fast(module, rules, run, kinds, keeps_layers=compiles or is_spread(module))
    kernels = choose_kernels(layers, rules, dtype, cache_dtype or dtype, device)
    served = _logits(module, ids, layers, cache_dtype or dtype, device, kinds, kernels)
    limit = None if kinds is None else probe.ROUGH_WEIGHTS
    limit = limit if cache_dtype is None else probe.ROUGH_CACHE
    probe.check_same(served, expected, dtype, "what is served", limit=limit)
    return Paged(layers, kernels)


def _make_fast(
    module: PreTrainedModel,
    rules: list[Rule],
    run: Callable[[], object],
    kinds: RowKinds | None,
    *,
    keeps_layers: bool,
) -> None:
    """Replace layers and products by faster forms, and by smaller ones if `kinds` asks for it.

    `keeps_layers`: the layers stay as they are, since they are compiled, or since their weights,
    which wait on disk or on another device, come and go.
    """
    make, make_head = _linears(kinds)
    if keeps_layers:
        if kinds is not None:
            pack(module, make, make_head)
    elif module.device.type != "cpu":
        make_lean(module, rules, run, PlainLinear if kinds is None else make, PlainLinear)
        if kinds is not None:
            pack(module, make, make_head)
    elif packing_works(module):
        make_lean(module, rules, run, make)
        stack_layers(module, run)
        pack(module, make, make_head)
    elif kinds is not None:
        pack(module, make, make_head)


def _linears(kinds: RowKinds | None) -> tuple[MakeLinear, MakeLinear]:
    """What the layers' products become, and that of the output, whose rows are of no kind."""
    if kinds is None:
        return make_linear, make_head
    return (
        functools.partial(make_int8, kinds=kinds),
        functools.partial(make_int8, kinds=None, wide=True),
    )


def _windows(module: PreTrainedModel, ids: torch.Tensor) -> list[int | None]:
    """How far back each layer sees, as the model's own cache has it."""
    cache = module(input_ids=ids, use_cache=True).past_key_values
    kinds = {type(layer) for layer in cache.layers}
    if kinds - {DynamicLayer, DynamicSlidingWindowLayer}:
        names = sorted(kind.__name__ for kind in kinds)
        raise CannotPage(f"it keeps more than keys and values ({', '.join(names)})")
    return [getattr(layer, "sliding_window", None) for layer in cache.layers]


def _ask_layers(module: PreTrainedModel, ids: torch.Tensor) -> tuple[list[LayerShape], list[Rule]]:
    """Ask the model itself: run it once with an attention that only takes notes."""
    shapes: dict[int, LayerShape] = {}
    rules: dict[int, Rule] = {}

    def note(layer_module, query, key, value, *_args, **kwargs):  # type: ignore[no-untyped-def]
        shapes[layer_module.layer_idx] = LayerShape(
            key.shape[1], key.shape[-1], value.shape[-1], key.device
        )
        rules[layer_module.layer_idx] = Rule.of(query, **kwargs)
        out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])
        return out, None

    ALL_ATTENTION_FUNCTIONS.register(attention.NAME, note)
    try:
        module(input_ids=ids, use_cache=False)
    finally:
        ALL_ATTENTION_FUNCTIONS.register(attention.NAME, attention.paged_attention)
    if sorted(shapes) != list(range(module.config.num_hidden_layers)):
        raise CannotPage("its layers compute attention in their own way")
    return [shapes[layer] for layer in sorted(shapes)], [rules[layer] for layer in sorted(rules)]


def _logits(
    module: PreTrainedModel,
    ids: torch.Tensor,
    layers: list[LayerShape],
    dtype: torch.dtype,
    device: torch.device,
    kinds: RowKinds | None = None,
    kernels: AttentionKernels = REFERENCE_ONLY,
) -> torch.Tensor:
    """Logits of the probe, its prompt as one chunk and the rest token by token."""
    token_ids: list[int] = ids[0].tolist()
    count, prompt_len = len(token_ids), probe.PROMPT_LEN
    # Small blocks are the harder test, but torch's kernels do not take them.
    size = 2 if kernels == REFERENCE_ONLY else BLOCK_SIZE[device.type]
    cache = KVCache(layers, num_blocks=count, block_size=size, dtype=dtype, device=device)
    forward = ForwardPass(module, cache, device, kinds=kinds, kernels=kernels)
    runner = TorchModelRunner(forward)
    sequence = Sequence(0, token_ids[:prompt_len], SamplingParams(max_new_tokens=count))
    sequence.token_ids = token_ids
    sequence.block_table = list(range(count))
    rows = []
    for num_tokens in [prompt_len] + [1] * (count - prompt_len):
        item = Scheduled.of(sequence, num_tokens)
        rows.append(runner.logits([item], [item], [])[0].clone())
        sequence.num_computed += num_tokens
    return torch.stack(rows)
