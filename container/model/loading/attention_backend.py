"""Chooses the fastest attention kernels whose results match the reference's.

Each layer variant of a model is tried on random tensors: decodes beside a prompt's chunk, contexts
that end within a block, blocks in arbitrary order. A kernel's error may be a small multiple
of the reference's own, both against the exact result (container.model.reference_check).
"""

import dataclasses
import logging
from collections.abc import Sequence

import torch
from torch.nn.attention import activate_flash_attention_impl, restore_flash_attention_impl

from container.engine.adapters import NO_ADAPTER
from container.errors import one_line
from container.model.attention.metadata import AttentionMetadata, AttentionParams
from container.model.attention.paged import attend
from container.model.attention.varlen import (
    REFERENCE_ONLY,
    AttentionKernels,
    DecodeMetadata,
    Kernel,
    VarlenMetadata,
)
from container.model.fallbacks import TRY_ANOTHER_DTYPE, Fallbacks
from container.model.forward_batch import ChunkPlan, ForwardPlan, GroupPlan
from container.model.kv_cache.cache import BLOCK_SIZE, FP8, KVCache, LayerShape
from container.model.reference_check import EXACT_DTYPE, Accuracy, measure

log = logging.getLogger(__name__)

FORMATS = {torch.bfloat16, torch.float16}
# Beyond the reference's error: a fused kernel rounds the probabilities as well, before it weights
# the values with them.
ALLOWANCE = 2.0
SIZE = BLOCK_SIZE["cuda"]
REMEDY = f"{TRY_ANOTHER_DTYPE}; Triton needs a C compiler, which the image contains"
NO_REMEDY = "no setting changes this"
OTHER_SCORES = "layers with a soft cap, ALiBi or chunks"
# Two decodes with contexts of 40 and 17 tokens; then 20 prompt tokens, the last at position 49.
GROUP = GroupPlan(0, 2, [[5, 2, 7], [3, 0, 11]], [40, 17])
CHUNK = ChunkPlan(2, 22, 50, [9, 1, 10, 4])
NUM_BLOCKS = 11  # the twelfth is the scratch block


def choose_kernels(
    layers: Sequence[LayerShape],
    layer_attn_params: Sequence[AttentionParams],
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
    fallbacks: Fallbacks,
) -> AttentionKernels:
    """Choose the fastest kernels that are accurate for every layer variant.

    Kernels that are refused, or do not support the model, are among the `fallbacks`.
    """
    if device.type != "cuda" or not layers:  # a recurrent model may attend to nothing
        return REFERENCE_ONLY
    # Parameters with other sinks are equal; a layer with sinks is another variant.
    variants = zip(layers, layer_attn_params, strict=True)
    layer_variants = list({(*pair, pair[1].sinks is None): pair for pair in variants}.values())
    formats = dtype, cache_dtype
    chunks = _choose_torchs(layer_variants, *formats, device, fallbacks)
    decodes = Kernel.TRITON
    refusal = _refusal(AttentionKernels(decodes=decodes), layer_variants, *formats, device)
    if refusal is not None:
        reason = f"{decodes.value} disabled: {refusal}; {chunks.value} serves"
        fallbacks.add("attention of decodes", reason, REMEDY)
        decodes = chunks
    return AttentionKernels(decodes, chunks)


LayerVariants = list[tuple[LayerShape, AttentionParams]]


def _choose_torchs(
    layer_variants: LayerVariants,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
    fallbacks: Fallbacks,
) -> Kernel:
    """Choose the first of PyTorch's kernels that is accurate for every layer that it fits.

    Layers with a soft cap, ALiBi or chunks always use the reference.
    """
    component = "attention of prompts"
    plain = [variant for variant in layer_variants if variant[1].fits_varlen]
    if (obstacle := _obstacle(layer_variants, plain, dtype, cache_dtype)) is not None:
        reason, remedy = obstacle
        fallbacks.add(component, f"PyTorch's operations serve, since {reason}", remedy)
        return Kernel.REFERENCE
    for kernel, flash in ((Kernel.PAGED, "FA3"), (Kernel.GATHERED, None)):
        if not activate_flash_attention(flash):
            continue
        kernels = AttentionKernels(kernel, kernel)
        refusal = _refusal(kernels, plain, dtype, cache_dtype, device)
        if refusal is None:
            if len(plain) < len(layer_variants):
                fallbacks.add(component, f"{OTHER_SCORES} use PyTorch's operations", NO_REMEDY)
            return kernel
        fallbacks.add(component, f"{kernel.value} disabled: {refusal}", REMEDY)
    fallbacks.add(component, "PyTorch's operations serve, since no kernel passed", REMEDY)
    return Kernel.REFERENCE


def _obstacle(
    layer_variants: LayerVariants,
    plain: LayerVariants,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
) -> tuple[str, str] | None:
    """Return why no kernel of PyTorch's supports the model, and a remedy; None if some may."""
    if dtype not in FORMATS:
        return "kernels need a format of 16 bits", "set DTYPE=bfloat16"
    if cache_dtype in FP8:
        return "no kernel reads a cache of eight bits", "unset KV_CACHE_DTYPE if memory allows"
    if not plain:
        return f"it has {OTHER_SCORES} only", NO_REMEDY
    if any(layer.key_dim != layer.value_dim for layer, _ in layer_variants):
        return "its keys and values differ in width", NO_REMEDY
    return None


def _refusal(
    kernels: AttentionKernels,
    layer_variants: LayerVariants,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
) -> str | None:
    """Return why the kernels' results cannot be used; None if they match the reference's."""
    name = kernels.decodes.value
    try:
        results = [
            kernel_accuracy(kernels, layer, attn_params, dtype, cache_dtype, layer.device or device)
            for layer, attn_params in layer_variants
        ]
    except Exception as error:  # each kernel raises its own types
        return f"its check failed: {one_line(error)}"
    worst = max(results, key=lambda accuracy: accuracy.median)
    if all(accuracy.is_within(ALLOWANCE) for accuracy in results):
        log.info("attention kernel %s passed its check: off by %s", name, worst)
        return None
    return f"it is off by {worst}"


def activate_flash_attention(name: str | None) -> bool:
    """Set PyTorch's implementation of FlashAttention, None its own; return whether it exists."""
    if name is None:
        restore_flash_attention_impl()
        return True
    try:
        activate_flash_attention_impl(name)
    except Exception as error:  # its package is missing, or is for another processor
        log.info("attention kernel %s: not installed for this GPU: %s", name, one_line(error))
        return False
    return True


@torch.inference_mode()
def kernel_accuracy(
    kernels: AttentionKernels,
    layer: LayerShape,
    attn_params: AttentionParams,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
) -> Accuracy:
    """Measure the kernels' error for one layer, in multiples of the reference's."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    cache = KVCache(
        [layer], num_blocks=NUM_BLOCKS, block_size=SIZE, dtype=cache_dtype, device=device
    )
    cache.keys[0].copy_(random(*cache.keys[0].shape))
    cache.values[0].copy_(random(*cache.values[0].shape))
    plan = _plan()
    query = random(CHUNK.stop, attn_params.heads, layer.key_dim)
    keys = random(CHUNK.stop, layer.kv_heads, layer.key_dim)
    values = random(CHUNK.stop, layer.kv_heads, layer.value_dim)
    if attn_params.key_bias is not None:
        bias = random(attn_params.heads, SIZE * len(CHUNK.block_table))
        attn_params = dataclasses.replace(attn_params, key_bias=bias)
    reference = AttentionMetadata.of(plan, cache, device)
    if kernels.decodes is Kernel.TRITON:
        decodes = DecodeMetadata.of(plan, cache, device)
        fast = AttentionMetadata.of(plan, cache, device, None, decodes)
    else:
        fast = AttentionMetadata.of(
            plan, cache, device, VarlenMetadata.of(plan, cache, kernels.chunks)
        )
    exact_dtype = EXACT_DTYPE[dtype]
    exact = AttentionMetadata.of(plan, _widened(cache, layer, exact_dtype, device), device)
    rows = [
        attend(metadata, 0, query.to(format_), keys.to(format_), values.to(format_), attn_params)
        for metadata, format_ in ((exact, exact_dtype), (reference, dtype), (fast, dtype))
    ]
    # Only rows that these kernels attend with: with the others the reference would be compared.
    served = GROUP.stop if kernels.chunks is Kernel.REFERENCE else CHUNK.stop
    exact_rows, own, got = (result[:served].flatten(1) for result in rows)
    return measure(exact_rows, own, got, dtype)


def _widened(
    cache: KVCache, layer: LayerShape, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """Copy a cache of one layer to a wider format."""
    copy = KVCache([layer], num_blocks=NUM_BLOCKS, block_size=SIZE, dtype=dtype, device=device)
    copy.keys[0].copy_(cache.keys[0].to(dtype))
    copy.values[0].copy_(cache.values[0].to(dtype))
    return copy


def _plan() -> ForwardPlan:
    """Create a plan as the scheduler could; ids and positions are not read."""
    last = [
        blocks[(context_lens - 1) // SIZE] * SIZE + (context_lens - 1) % SIZE
        for blocks, context_lens in zip(GROUP.block_table, GROUP.context_lens, strict=True)
    ]
    count = CHUNK.stop - CHUNK.start
    new = range(CHUNK.context_len - count, CHUNK.context_len)
    slots = [CHUNK.block_table[i // SIZE] * SIZE + i % SIZE for i in new]
    rows = CHUNK.stop
    return ForwardPlan(
        token_ids=[0] * rows,
        positions=[0] * rows,
        slot_mapping=last + slots,
        logit_rows=[],
        groups=[GROUP],
        chunks=[CHUNK],
        num_decodes=GROUP.stop,
        adapters=[(NO_ADAPTER, rows)],
    )
