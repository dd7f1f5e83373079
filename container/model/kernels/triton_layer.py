"""Triton kernels for the ops between a layer's GEMMs: RoPE, norms, the gate.

The rules of triton_attention.py hold here, too.
"""

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from container.model.kernels.triton_attention import MANTISSAS

# Numbers that a program of rope_and_store_kv and of silu_times works on.
CHUNK = 1024


def rope_and_store_kv(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    keys_cache: torch.Tensor,
    values_cache: torch.Tensor,
    *,
    heads: int,
    kv_heads: int,
    block_size: int,
    scale: float,
    head_norm: tuple[torch.Tensor, float] | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Norm (with `head_norm`) and rotate q and k, scale q, store k and v; return q, k and v.

    `qkv` is [tokens, (heads + 2 * kv_heads) * dim], `cos` and `sin` are [tokens, dim], `slots` is
    int64 [tokens]: block id * block size + offset. A head norm is a weight for each head of q and
    k, [heads + kv_heads, dim], and the number to add to the mean square. Results are
    [tokens, heads or kv_heads, dim]. The cache gets the returned k and v; a cache of eight bits
    rounds them as KVCache does.
    """
    count, dim = cos.shape
    all_heads = heads + 2 * kv_heads
    dim_pad = triton.next_power_of_2(dim)
    tile = min(triton.next_power_of_2(all_heads), max(1, CHUNK // dim_pad))
    mantissa = MANTISSAS.get(keys_cache.dtype, 0)
    if mantissa:
        keys_cache, values_cache = keys_cache.view(torch.uint8), values_cache.view(torch.uint8)
    q, k, v = (
        torch.empty(count, num_heads, dim, dtype=qkv.dtype, device=qkv.device)
        for num_heads in (heads, kv_heads, kv_heads)
    )
    # Without a norm its weight is not read.
    weight, eps = head_norm if head_norm is not None else (qkv, 0.0)
    with torch.cuda.device_of(qkv):
        _rope_and_store_kv[count, triton.cdiv(all_heads, tile)](
            qkv, cos, sin, slots, weight, keys_cache, values_cache, q, k, v, scale, eps,
            heads=heads, kv_heads=kv_heads, dim=dim, block_size=block_size,
            has_norm=head_norm is not None, mantissa=mantissa, tile=tile, dim_pad=dim_pad,
            num_warps=4,
        )  # fmt: skip
    return q, k, v


def add_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add `residual`, if there is any, and norm the sum's root mean square; return both.

    Rows are [tokens, hidden], `weight` is [hidden]. The sum is rounded before it is normed, as it
    is when torch makes it. Without `residual` the sum is x itself.
    """
    count, hidden = x.shape
    total = torch.empty_like(x) if residual is not None else x
    normed = torch.empty_like(x)
    pad = triton.next_power_of_2(hidden)
    with torch.cuda.device_of(x):
        _add_norm[count,](
            x, x if residual is None else residual, weight, total, normed, eps,
            hidden=hidden, has_residual=residual is not None, pad=pad,
            num_warps=min(16, max(4, pad // 512)),
        )  # fmt: skip
    return total, normed


def silu_times(gate_up: torch.Tensor) -> torch.Tensor:
    """Multiply silu(gate) with up, side by side in [tokens, 2 * width]: [tokens, width]."""
    count, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(count, width, dtype=gate_up.dtype, device=gate_up.device)
    with torch.cuda.device_of(gate_up):
        _silu_times[count, triton.cdiv(width, CHUNK)](
            gate_up, out, width=width, tile=CHUNK, num_warps=4
        )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _rope_and_store_kv(  # type: ignore[no-untyped-def]
    qkv, cos, sin, slots, norm, keys_cache, values_cache, q, k, v, scale, eps,
    heads: tl.constexpr, kv_heads: tl.constexpr, dim: tl.constexpr, block_size: tl.constexpr,
    has_norm: tl.constexpr, mantissa: tl.constexpr, tile: tl.constexpr, dim_pad: tl.constexpr,
):  # fmt: skip
    """Do it for `tile` heads of one token; the heads of v only pass through."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * tile + tl.arange(0, tile))[:, None]
    d = tl.arange(0, dim_pad)[None, :]
    half: tl.constexpr = dim // 2
    is_first = d < half
    other = tl.where(is_first, d + half, d - half)
    exists = (head < heads + 2 * kv_heads) & (d < dim)
    is_rotated = exists & (head < heads + kv_heads)
    row = qkv + (token * (heads + 2 * kv_heads) + head) * dim
    own = tl.load(row + d, mask=exists, other=0.0).to(tl.float32)
    a = own
    b = tl.load(row + other, mask=is_rotated, other=0.0).to(tl.float32)
    if has_norm:
        mean_square = tl.sum(own * own, 1)[:, None] / dim
        rate = tl.rsqrt(mean_square + eps)
        a = own * rate * tl.load(norm + head * dim + d, mask=is_rotated, other=0.0).to(tl.float32)
        b = b * rate * tl.load(norm + head * dim + other, mask=is_rotated, other=0.0).to(tl.float32)
    # The rotation is (a, b) -> (a * cos - b * sin, b * cos + a * sin), a and b the two halves.
    c = tl.load(cos + token * dim + d, mask=d < dim, other=0.0).to(tl.float32)
    s = tl.load(sin + token * dim + d, mask=d < dim, other=0.0).to(tl.float32)
    rotated = a * c + b * tl.where(is_first, -s, s)
    rotated = tl.where(head < heads, rotated * scale, rotated)
    result = tl.where(is_rotated, rotated, own).to(q.dtype.element_ty)

    is_q = exists & (head < heads)
    is_k = is_rotated & (head >= heads)
    is_v = exists & (head >= heads + kv_heads)
    of_k = head - heads
    of_v = of_k - kv_heads
    tl.store(q + (token * heads + head) * dim + d, result, mask=is_q)
    tl.store(k + (token * kv_heads + of_k) * dim + d, result, mask=is_k)
    tl.store(v + (token * kv_heads + of_v) * dim + d, result, mask=is_v)

    slot = tl.load(slots + token)
    first_head = slot // block_size * kv_heads
    offset = slot % block_size
    if mantissa > 0:
        stored = _to_fp8(result.to(tl.float32), mantissa)
    else:
        stored = result.to(keys_cache.dtype.element_ty)
    k_offset = ((first_head + of_k) * block_size + offset) * dim + d
    v_offset = ((first_head + of_v) * block_size + offset) * dim + d
    tl.store(keys_cache + k_offset, stored, mask=is_k)
    tl.store(values_cache + v_offset, stored, mask=is_v)


@triton.jit  # type: ignore[untyped-decorator]
def _to_fp8(x, mantissa: tl.constexpr):  # type: ignore[no-untyped-def]
    """Round float32 to the bits of float8_e4m3fn or e5m2, ties to even, as torch does.

    What is too large becomes the largest number. In ints, as not every GPU has the formats.
    """
    bias: tl.constexpr = 7 if mantissa == 3 else 15
    largest: tl.constexpr = 448.0 if mantissa == 3 else 57344.0
    dropped: tl.constexpr = 23 - mantissa
    size = tl.minimum(tl.abs(x), largest)
    bits = size.to(tl.int32, bitcast=True)
    is_odd = (bits >> dropped) & 1
    shift: tl.constexpr = ((bias - 127) << 23) + (1 << (dropped - 1)) - 1
    normal = (bits + shift + is_odd) >> dropped
    # Numbers below the smallest normal one are multiples of a step; beside this number, which is
    # so large that its last bit is that step, float32 rounds to them.
    anchor_bits: tl.constexpr = (127 - bias + dropped + 1) << 23
    anchor: tl.constexpr = 2.0 ** (dropped + 1 - bias)
    tiny = (size + anchor).to(tl.int32, bitcast=True) - anchor_bits
    code = tl.where(bits < ((128 - bias) << 23), tiny, normal)
    code = tl.where(x == x, code, 0x7F)  # NaN stays NaN
    sign = (x.to(tl.int32, bitcast=True) >> 24) & 0x80
    return (code | sign).to(tl.uint8)


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(  # type: ignore[no-untyped-def]
    x, residual, weight, total, normed, eps,
    hidden: tl.constexpr, has_residual: tl.constexpr, pad: tl.constexpr,
):  # fmt: skip
    """Add and norm one row."""
    row = tl.program_id(0).to(tl.int64) * hidden
    d = tl.arange(0, pad)
    exists = d < hidden
    rounded = tl.load(x + row + d, mask=exists, other=0.0)
    if has_residual:
        added = tl.load(residual + row + d, mask=exists, other=0.0)
        rounded = (rounded.to(tl.float32) + added.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(total + row + d, rounded, mask=exists)
    numbers = rounded.to(tl.float32)
    rate = tl.rsqrt(tl.sum(numbers * numbers, 0) / hidden + eps)
    scaled = numbers * rate * tl.load(weight + d, mask=exists, other=0.0).to(tl.float32)
    tl.store(normed + row + d, scaled.to(x.dtype.element_ty), mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def _silu_times(gate_up, out, width: tl.constexpr, tile: tl.constexpr):  # type: ignore[no-untyped-def]
    """Make `tile` numbers of one row."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * tile + tl.arange(0, tile)
    exists = d < width
    gate = tl.load(gate_up + row * 2 * width + d, mask=exists, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * width + d, mask=exists, other=0.0).to(tl.float32)
    result = gate / (1 + tl.exp(-gate)) * up
    tl.store(out + row * width + d, result.to(out.dtype.element_ty), mask=exists)
