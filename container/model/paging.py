"""Paging: switches a transformers model to paged attention, and proves that nothing else changed.

Which models can be paged is not looked up in a list: the model is run and compared.
"""

import logging
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from container.engine.batch import Scheduled
from container.engine.sequence import Sequence
from container.errors import ModelLoadError
from container.messages import SamplingParams
from container.model import attention
from container.model.attention import Rule
from container.model.kv_cache import KVCache, LayerShape
from container.model.layers import make_lean
from container.model.packing import pack, packing_works
from container.model.runner import TorchModelRunner

log = logging.getLogger(__name__)

PROBE_IDS = [5, 7, 11, 13, 17, 19, 23, 29]  # any ids will do
# How far logits may be off, as a share of the largest: float32 only by rounding, half-precision
# formats by what the order of their sums makes.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model whose attention is paged, with what the cache needs to know of it."""

    module: PreTrainedModel
    config: PretrainedConfig
    layers: list[LayerShape]
    dtype: torch.dtype
    device: torch.device


def prepare(module: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Switch a model to paged attention and packed layers, and check it against its own.

    Raises ModelLoadError when the model does not compute the same that way.
    """
    ids = torch.tensor([PROBE_IDS], device=device) % module.config.vocab_size
    with torch.inference_mode():
        expected = module(input_ids=ids, use_cache=False).logits[0].float()
        module.set_attn_implementation(attention.NAME)
        layers, rules = _ask_layers(module, ids)
        if device.type == "cpu" and packing_works(module):
            make_lean(module, rules, lambda: _paged_logits(module, ids, layers, dtype, device))
            pack(module)
        got = _paged_logits(module, ids, layers, dtype, device)
    _check_same(got, expected, module.config.model_type, dtype)
    return LoadedModel(module, module.config, layers, dtype, device)


def _ask_layers(module: PreTrainedModel, ids: torch.Tensor) -> tuple[list[LayerShape], list[Rule]]:
    """Ask the model itself: run it once with an attention that only takes notes."""
    shapes: dict[int, LayerShape] = {}
    rules: dict[int, Rule] = {}

    def note(layer_module, query, key, value, *_args, **kwargs):  # type: ignore[no-untyped-def]
        shapes[layer_module.layer_idx] = LayerShape(key.shape[1], key.shape[-1], value.shape[-1])
        rules[layer_module.layer_idx] = Rule.of(query, **kwargs)
        out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])
        return out, None

    ALL_ATTENTION_FUNCTIONS.register(attention.NAME, note)
    try:
        module(input_ids=ids, use_cache=False)
    finally:
        ALL_ATTENTION_FUNCTIONS.register(attention.NAME, attention.paged_attention)
    if sorted(shapes) != list(range(module.config.num_hidden_layers)):
        raise ModelLoadError(
            f"{module.config.model_type} models compute attention in their own way, which this "
            "version does not serve (no layer uses transformers' attention interface)"
        )
    return [shapes[layer] for layer in sorted(shapes)], [rules[layer] for layer in sorted(rules)]


def _paged_logits(
    module: PreTrainedModel,
    ids: torch.Tensor,
    layers: list[LayerShape],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """Logits of the probe, its first half as one chunk and the rest token by token."""
    count = ids.shape[1]
    cache = KVCache(layers, num_blocks=count, block_size=2, dtype=dtype, device=device)
    runner = TorchModelRunner(module, cache, device)
    sequence = Sequence(0, ids[0, : count // 2].tolist(), SamplingParams(max_new_tokens=count))
    sequence.token_ids = ids[0].tolist()
    sequence.block_table = list(range(count))
    rows = []
    for num_tokens in [count // 2] + [1] * (count - count // 2):
        item = Scheduled(sequence, num_tokens)
        rows.append(runner.logits([item], [item], [])[0])
        sequence.num_computed += num_tokens
    return torch.stack(rows)


def _check_same(
    got: torch.Tensor, expected: torch.Tensor, model_type: str, dtype: torch.dtype
) -> None:
    expected = expected[expected.shape[0] // 2 - 1 :]
    scale = expected.abs().max().item()
    error = (got - expected).abs().max().item() / max(scale, 1e-6)
    limit = TOLERANCE[dtype]
    log.info("paged attention checked against the model's own: off by %.2g of the scale", error)
    if not error <= limit:
        raise ModelLoadError(
            f"{model_type}: paged attention differs from the model's own by {error:.2g} "
            f"(limit {limit}); this version does not serve it"
        )
