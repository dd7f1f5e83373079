"""Triton kernels for paged attention on GPUs.

Each computes in float32 what torch's operations compute in several passes over memory: the
functions below say which. They read no device memory on the host, and their grids depend on shapes
alone, so that a CUDA graph can record them (once each has been compiled, by a first call). Under
Triton's interpreter they run on the CPU; that is how they are tested.

All tensors are contiguous but for `tables`, and lie on one device.
"""

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from container.model.kernels.triton_decode import attend_piece, join_pieces

# Tokens of a piece of a context that one program attends to, if the context is not too long ...
PIECE = 256
# ... and about how many programs a row should have at most: enough to fill a GPU alone.
ROW_PROGRAMS = 256
# Bytes of keys and values that one program has in its memory: two tiles, one of which is on its way
# while the other one is worked on. Of such programs every GPU since Ampere runs several at a time.
IN_FLIGHT = 32768
# Triton's setting for that: the blocks' ids are fetched before the blocks, which takes two
# of the stages of its pipeline.
STAGES = 5
# Tokens that a program of decode_attention reads at once, at most.
TILE = 64
# The fewest rows and columns of tl.dot.
MIN_DOT = 16
# Numbers of the result that a program of decode_attention has in registers, at most.
RESULTS = 8192
# Bits of the mantissa in the formats of eight bits.
MANTISSAS = {torch.float8_e4m3fn: 3, torch.float8_e5m2: 2}
# The first GPUs that convert float8_e4m3fn themselves are Ada's, and Hopper's after them.
NATIVE_E4M3 = (8, 9)
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def device_type() -> str:
    """Where the kernels run: `cuda`, or `cpu` under the interpreter."""
    return "cuda" if isinstance(attend_piece, triton.JITFunction) else "cpu"


def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lens: torch.Tensor,
    *,
    kv_heads: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    chunk: int | None = None,
    sinks: torch.Tensor | None = None,
    key_bias: torch.Tensor | None = None,
    is_latent: bool = False,
) -> torch.Tensor:
    """Attend one row of each sequence to a paged cache: [rows, heads, value_dim].

    `query` is [rows, heads, dim]; `keys` and `values` are a layer's of KVCache, [blocks * kv_heads,
    block_size, dim]; `tables` has each row's blocks, int32 [rows, width], of which those after its
    last token are not read; `lens` is the number of its tokens, int32 [rows], at least 1. With a
    `window` it attends only to that many tokens, with a `chunk` to those since the last multiple of
    it. `sinks` [heads] are scores without a value; `key_bias` [heads, at least the longest of
    `lens`] is added to the scores of the keys at each position. With `is_latent`, values are the
    first numbers of the keys, which are read once.

    As in Flash-Decoding (Dao et al., 2023) a row's context is cut into pieces, which one kernel
    attends to and a second one puts together. Where the cuts are depends on this row's length
    alone, so its result has the same bits with any other rows.
    """
    count, heads, dim = query.shape
    _, block_size, value_dim = values.shape
    # What a latent key has beside its value is multiplied apart.
    main_dim = value_dim if is_latent else dim
    pads = [
        max(MIN_DOT, triton.next_power_of_2(size)) for size in (main_dim, value_dim, dim - main_dim)
    ]
    group = heads // kv_heads
    group_pad = max(MIN_DOT, triton.next_power_of_2(group))
    group_pad = min(group_pad, max(MIN_DOT, RESULTS // pads[1]))
    head_tiles = triton.cdiv(group, group_pad)
    most = _most_pieces(kv_heads * head_tiles)
    pieces = min(most, triton.cdiv(tables.shape[1] * block_size, PIECE))
    # Two tiles of keys and two of values.
    tile = min(TILE, max(MIN_DOT, IN_FLIGHT // (4 * max(pads) * query.element_size())))
    mantissa = _read_as(keys)
    if mantissa:
        keys, values = keys.view(torch.uint8), values.view(torch.uint8)
    shape = (count, heads, pieces)
    part = torch.empty(*shape, value_dim, dtype=torch.float32, device=query.device)
    highest, total = (
        torch.empty(shape, dtype=torch.float32, device=query.device) for _ in range(2)
    )
    out = torch.empty(count, heads, value_dim, dtype=query.dtype, device=query.device)
    window_size = window if window is not None else 2**31 - 1
    if key_bias is not None and key_bias.stride(1) != 1:
        key_bias = key_bias.contiguous()
    bias_stride = 0 if key_bias is None else key_bias.stride(0)
    with torch.cuda.device_of(query):
        attend_piece[count, kv_heads * head_tiles, pieces](
            query, keys, values, tables, lens, lens if key_bias is None else key_bias,
            part, highest, total, tables.stride(0), bias_stride, pieces, window_size, chunk or 0,
            scale,
            heads=heads, kv_heads=kv_heads, dim=dim, value_dim=value_dim, block_size=block_size,
            softcap=softcap or 0.0, has_bias=key_bias is not None, most=most, shortest=PIECE,
            tile=tile, mantissa=mantissa, product=_product_type(query.dtype),
            dim_pad=pads[0], value_pad=pads[1], rest_pad=pads[2], is_latent=is_latent,
            group_pad=group_pad, head_tiles=head_tiles,
            num_warps=4, num_stages=STAGES,
        )  # fmt: skip
        join_pieces[count, heads](
            part, highest, total, lens, lens if sinks is None else sinks, out, pieces, window_size,
            chunk or 0, heads=heads, has_sinks=sinks is not None, value_dim=value_dim, most=most,
            shortest=PIECE, tile=tile, most_pad=triton.next_power_of_2(most), value_pad=pads[1],
            num_warps=4,
        )  # fmt: skip
    return out


def _most_pieces(programs: int) -> int:
    """Return the most pieces of a context, each for `programs` programs; then pieces get longer.

    This bounds the results that one kernel hands to the other, and is the same for all rows.
    """
    return int(min(128, max(16, triton.next_power_of_2(max(1, ROW_PROGRAMS // programs)))))


def _read_as(cache: torch.Tensor) -> int:
    """Bits of the mantissa of numbers that a kernel must convert itself, else 0."""
    mantissa = MANTISSAS.get(cache.dtype, 0)
    if cache.dtype == torch.float8_e4m3fn and cache.is_cuda:
        is_native = torch.cuda.get_device_capability(cache.device) >= NATIVE_E4M3
        return 0 if is_native else mantissa
    return mantissa


def _product_type(dtype: torch.dtype) -> Any:
    """Return the type to multiply numbers of a format in; the interpreter has no bfloat16."""
    if dtype == torch.bfloat16 and device_type() == "cpu":
        return tl.float32
    return TYPES[dtype]
