"""Whether a faster attention may serve: it must compute what the reference computes.

Each kind of layer that a model has is tried on random tensors: decodes and a prompt's chunk side by
side, contexts that end within a block, blocks in no order.
"""

import logging
from collections.abc import Sequence

import torch
from torch.nn.attention import activate_flash_attention_impl, restore_flash_attention_impl

from container.engine.adapters import BASE
from container.model.attention.metadata import PagedStep, Rule
from container.model.attention.paged import attend
from container.model.attention.varlen import (
    REFERENCE_ONLY,
    AttentionKernels,
    DecodeTables,
    Kernel,
    VarlenTables,
)
from container.model.forward_batch import ChunkPlan, ForwardPlan, GroupPlan
from container.model.kv_cache.cache import BLOCK_SIZE, FP8, KVCache, LayerShape

log = logging.getLogger(__name__)

FORMATS = {torch.bfloat16, torch.float16}
# How far a result may be off, as a share of the largest number.
TOLERANCE = 0.02
SIZE = BLOCK_SIZE["cuda"]
# Two decodes that see 40 and 17 tokens; then 20 tokens of a prompt, of which the last sees 50.
GROUP = GroupPlan(0, 2, [[5, 2, 7], [3, 0, 11]], [40, 17])
CHUNK = ChunkPlan(2, 22, 50, [9, 1, 10, 4])
NUM_BLOCKS = 11  # the twelfth is the scratch block


def choose_kernels(
    layers: Sequence[LayerShape],
    rules: Sequence[Rule],
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
) -> AttentionKernels:
    """Take what serves every kind of layer, the fastest first; the log says which."""
    if device.type != "cuda":
        return REFERENCE_ONLY
    kinds = set(zip(layers, rules, strict=True))
    chunks = _choose_torchs(kinds, dtype, cache_dtype, device)
    ours = AttentionKernels(decodes=Kernel.TRITON)
    decodes = Kernel.TRITON if _serves(ours, kinds, dtype, cache_dtype, device) else chunks
    if Kernel.REFERENCE in (decodes, chunks):
        what = "all attention" if decodes is chunks else "attention within prompts"
        log.warning("%s goes the slow way, as no kernel serves here", what)
    return AttentionKernels(decodes, chunks)


Kinds = set[tuple[LayerShape, Rule]]


def _choose_torchs(
    kinds: Kinds, dtype: torch.dtype, cache_dtype: torch.dtype, device: torch.device
) -> Kernel:
    """Take the first of torch's kernels that serves every kind of layer without a soft cap.

    Soft caps are the reference's business, whatever serves the other layers.
    """
    plain = {kind for kind in kinds if kind[1].softcap is None}
    is_known = dtype in FORMATS and cache_dtype not in FP8
    if not plain or not is_known or any(layer.key_dim != layer.value_dim for layer, _ in kinds):
        return Kernel.REFERENCE
    for kernel, name in ((Kernel.PAGED, "FA3"), (Kernel.GATHERED, None)):
        if _serves(AttentionKernels(kernel, kernel), plain, dtype, cache_dtype, device, name):
            return kernel
    return Kernel.REFERENCE


def _serves(
    kernels: AttentionKernels,
    kinds: Kinds,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
    flash: str | None = None,
) -> bool:
    """Whether kernels compute what the reference computes; the log says so.

    `flash` is the implementation of FlashAttention that torch is to use.
    """
    name = kernels.decodes.value
    try:
        if kernels.decodes is not Kernel.TRITON:
            _activate(flash)
        off = max(
            kernel_error(kernels, layer, rule, dtype, cache_dtype, layer.device or device)
            for layer, rule in kinds
        )
    except Exception as error:  # each kernel has its own reasons
        log.info("%s is not used, as it fails here: %s", name, error)
        return False
    if off <= TOLERANCE:
        log.info("%s checked against the reference: off by %.2g", name, off)
        return True
    log.warning("%s is not used, as it is off by %.2g", name, off)
    return False


def _activate(name: str | None) -> None:
    """Have torch use this implementation of FlashAttention; None: the one that it brings along."""
    if name is None:
        restore_flash_attention_impl()
    else:
        activate_flash_attention_impl(name)


@torch.inference_mode()
def kernel_error(
    kernels: AttentionKernels,
    layer: LayerShape,
    rule: Rule,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
) -> float:
    """How far kernels are off for one layer, as a share of the largest number."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    cache = KVCache(
        [layer], num_blocks=NUM_BLOCKS, block_size=SIZE, dtype=cache_dtype, device=device
    )
    cache.keys[0].copy_(random(*cache.keys[0].shape))
    cache.values[0].copy_(random(*cache.values[0].shape))
    plan = _plan()
    query = random(CHUNK.stop, rule.heads, layer.key_dim)
    keys = random(CHUNK.stop, layer.kv_heads, layer.key_dim)
    values = random(CHUNK.stop, layer.kv_heads, layer.value_dim)
    reference = PagedStep.of(plan, cache, device)
    if kernels.decodes is Kernel.TRITON:
        decodes = DecodeTables.of(plan, cache, device)
        fast = PagedStep.of(plan, cache, device, None, decodes)
    else:
        fast = PagedStep.of(plan, cache, device, VarlenTables.of(plan, cache, kernels.chunks))
    expected, got = (attend(one, 0, query, keys, values, rule) for one in (reference, fast))
    scale = expected.float().abs().max().item()
    return (got.float() - expected.float()).abs().max().item() / max(scale, 1e-6)


def _plan() -> ForwardPlan:
    """What a scheduler could have planned; ids and positions are not looked at."""
    last = [
        blocks[(seen - 1) // SIZE] * SIZE + (seen - 1) % SIZE
        for blocks, seen in zip(GROUP.blocks, GROUP.context_lens, strict=True)
    ]
    count = CHUNK.stop - CHUNK.start
    new = range(CHUNK.context_len - count, CHUNK.context_len)
    slots = [CHUNK.blocks[i // SIZE] * SIZE + i % SIZE for i in new]
    rows = CHUNK.stop
    return ForwardPlan(
        token_ids=[0] * rows,
        positions=[0] * rows,
        slots=last + slots,
        logit_rows=[],
        groups=[GROUP],
        chunks=[CHUNK],
        num_decodes=GROUP.stop,
        adapters=[(BASE, rows)],
    )
