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
# tl.dot wants at least so many rows and columns.
MIN_DOT = 16
# Bits of the mantissa in the formats of eight bits.
MANTISSAS = {torch.float8_e4m3fn: 3, torch.float8_e5m2: 2}
# The first GPUs that convert float8_e4m3fn themselves are Ada's, and Hopper's after them.
NATIVE_E4M3 = (8, 9)
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def device_type() -> str:
    """Where the kernels run: `cuda`, or `cpu` under the interpreter."""
    return "cuda" if isinstance(_attend_piece, triton.JITFunction) else "cpu"


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
) -> torch.Tensor:
    """Attend one row of each sequence to a paged cache: [rows, heads, value_dim].

    `query` is [rows, heads, dim]; `keys` and `values` are a layer's of KVCache, [blocks * kv_heads,
    block_size, dim]; `tables` has each row's blocks, int32 [rows, width], of which those after its
    last token are not read; `lens` is the number of its tokens, int32 [rows], at least 1. With a
    `window` it attends only to that many tokens, with a `chunk` to those since the last multiple of
    it. `sinks` [heads] are scores without a value; `key_bias` [heads, at least the longest of
    `lens`] is added to the scores of the keys at each position.

    As in Flash-Decoding (Dao et al., 2023) a row's context is cut into pieces, which one kernel
    attends to and a second one puts together. Where the cuts are depends on this row's length
    alone, so its result has the same bits with any other rows.
    """
    count, heads, dim = query.shape
    _, block_size, value_dim = values.shape
    most = _most_pieces(kv_heads)
    pieces = min(most, triton.cdiv(tables.shape[1] * block_size, PIECE))
    pads = [max(MIN_DOT, triton.next_power_of_2(size)) for size in (dim, value_dim)]
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
    seen = window if window is not None else 2**31 - 1
    if key_bias is not None and key_bias.stride(1) != 1:
        key_bias = key_bias.contiguous()
    bias_stride = 0 if key_bias is None else key_bias.stride(0)
    with torch.cuda.device_of(query):
        _attend_piece[count, kv_heads, pieces](
            query, keys, values, tables, lens, lens if key_bias is None else key_bias,
            part, highest, total, tables.stride(0), bias_stride, pieces, seen, chunk or 0,
            scale,
            heads=heads, kv_heads=kv_heads, dim=dim, value_dim=value_dim, block_size=block_size,
            softcap=softcap or 0.0, has_bias=key_bias is not None, most=most, shortest=PIECE,
            tile=tile, mantissa=mantissa, product=_product_type(query.dtype),
            dim_pad=pads[0], value_pad=pads[1],
            group_pad=max(MIN_DOT, triton.next_power_of_2(heads // kv_heads)),
            num_warps=4, num_stages=STAGES,
        )  # fmt: skip
        _join_pieces[count, heads](
            part, highest, total, lens, lens if sinks is None else sinks, out, pieces, seen,
            chunk or 0, heads=heads, has_sinks=sinks is not None, value_dim=value_dim, most=most,
            shortest=PIECE, tile=tile, most_pad=triton.next_power_of_2(most), value_pad=pads[1],
            num_warps=4,
        )  # fmt: skip
    return out


def _most_pieces(kv_heads: int) -> int:
    """How many pieces a context has at most; longer ones have longer pieces.

    This bounds what one kernel hands to the other. It is the same for all rows of a model.
    """
    return int(min(128, max(16, triton.next_power_of_2(ROW_PROGRAMS // kv_heads))))


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


# Kernels. Lengths, widths and counts that differ between steps are not looked at when a kernel is
# compiled: there is one form of each for a model.
STEP_ARGUMENTS = ["tables", "lens", "stride", "bias_stride", "pieces", "window", "chunk"]


@triton.jit(do_not_specialize=STEP_ARGUMENTS)  # type: ignore[untyped-decorator]
def _attend_piece(  # type: ignore[no-untyped-def]
    query, keys, values, tables, lens, key_bias, part, highest, total,
    stride, bias_stride, pieces, window, chunk, scale,
    heads: tl.constexpr, kv_heads: tl.constexpr, dim: tl.constexpr, value_dim: tl.constexpr,
    block_size: tl.constexpr, softcap: tl.constexpr, has_bias: tl.constexpr, most: tl.constexpr,
    shortest: tl.constexpr, tile: tl.constexpr, mantissa: tl.constexpr, product: tl.constexpr,
    dim_pad: tl.constexpr, value_pad: tl.constexpr, group_pad: tl.constexpr,
):  # fmt: skip
    """Attend the query heads of one KV head to one piece of a row's context.

    `part` gets the sum of the values by weight, before it is divided by `total`, the sum of the
    weights; `highest` is the score whose weight is 1. `stride` is from a row of tables to the next.
    """
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    piece = tl.program_id(2)
    length = tl.load(lens + row)
    first = _first_visible(length, window, chunk)
    piece_len = _piece_len(length - first, most, shortest, tile)
    start = first + piece * piece_len
    if start >= length:
        return
    stop = tl.minimum(start + piece_len, length)

    group: tl.constexpr = heads // kv_heads
    member = tl.arange(0, group_pad)
    in_group = member < group
    d = tl.arange(0, dim_pad)
    e = tl.arange(0, value_pad)
    head = row * heads + kv_head * group + member
    q = tl.load(
        query + head[:, None] * dim + d[None, :],
        mask=in_group[:, None] & (d < dim)[None, :],
        other=0.0,
    )
    top = tl.full([group_pad], float("-inf"), tl.float32)
    weight_sum = tl.full([group_pad], 0.0, tl.float32)
    out = tl.full([group_pad, value_pad], 0.0, tl.float32)
    for at in range(start, stop, tile):
        # The first of these is always seen, so no row of scores is hidden altogether.
        position = at + tl.arange(0, tile)
        seen = position < stop
        block = tl.load(tables + row * stride + position // block_size, mask=seen, other=0)
        cache_row = (block.to(tl.int64) * kv_heads + kv_head) * block_size + position % block_size
        k = tl.load(
            keys + cache_row[:, None] * dim + d[None, :],
            mask=seen[:, None] & (d < dim)[None, :],
            other=0.0,
        )
        v = tl.load(
            values + cache_row[:, None] * value_dim + e[None, :],
            mask=seen[:, None] & (e < value_dim)[None, :],
            other=0.0,
        )
        k = _from_stored(k, mantissa).to(q.dtype).to(product)
        v = _from_stored(v, mantissa).to(q.dtype).to(product)
        scores = tl.dot(q.to(product), tl.trans(k), input_precision="ieee") * scale
        if softcap > 0.0:
            # tanh(x) = 1 - 2 / (exp(2x) + 1), which is right at both ends, too.
            scores = softcap - 2 * softcap / (tl.exp(scores * (2 / softcap)) + 1)
        if has_bias:
            scores += tl.load(
                key_bias + (kv_head * group + member)[:, None] * bias_stride + position[None, :],
                mask=in_group[:, None] & seen[None, :],
                other=0.0,
            ).to(tl.float32)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        now = tl.maximum(top, tl.max(scores, 1))
        fade = tl.exp(top - now)
        weights = tl.exp(scores - now[:, None])
        weight_sum = weight_sum * fade + tl.sum(weights, 1)
        rounded = weights.to(q.dtype).to(product)
        out = out * fade[:, None] + tl.dot(rounded, v, input_precision="ieee")
        top = now

    at_piece = head * pieces + piece
    tl.store(highest + at_piece, top, mask=in_group)
    tl.store(total + at_piece, weight_sum, mask=in_group)
    tl.store(
        part + at_piece[:, None] * value_dim + e[None, :],
        out,
        mask=in_group[:, None] & (e < value_dim)[None, :],
    )


@triton.jit(do_not_specialize=["lens", "pieces", "window", "chunk"])  # type: ignore[untyped-decorator]
def _join_pieces(  # type: ignore[no-untyped-def]
    part, highest, total, lens, sinks, result, pieces, window, chunk,
    heads: tl.constexpr, has_sinks: tl.constexpr, value_dim: tl.constexpr, most: tl.constexpr,
    shortest: tl.constexpr, tile: tl.constexpr, most_pad: tl.constexpr, value_pad: tl.constexpr,
):  # fmt: skip
    """Make one head's result of what its pieces gave."""
    row = tl.program_id(0).to(tl.int64)
    head = row * heads + tl.program_id(1)
    length = tl.load(lens + row)
    span = length - _first_visible(length, window, chunk)
    piece_len = _piece_len(span, most, shortest, tile)
    used = (span + piece_len - 1) // piece_len
    e = tl.arange(0, value_pad)
    each = tl.arange(0, most_pad)
    tops = tl.load(highest + head * pieces + each, mask=each < used, other=float("-inf"))
    top = tl.max(tops, 0)
    if has_sinks:
        sink = tl.load(sinks + tl.program_id(1)).to(tl.float32)
        top = tl.maximum(top, sink)
    at_once: tl.constexpr = 16
    out = tl.full([at_once, value_pad], 0.0, tl.float32)
    weight_sum = tl.full([at_once], 0.0, tl.float32)
    for at in range(0, used, at_once):
        piece = at + tl.arange(0, at_once)
        is_used = piece < used
        at_piece = head * pieces + piece
        weight = tl.exp(tl.load(highest + at_piece, mask=is_used, other=float("-inf")) - top)
        weight_sum += weight * tl.load(total + at_piece, mask=is_used, other=0.0)
        sums = tl.load(
            part + at_piece[:, None] * value_dim + e[None, :],
            mask=is_used[:, None] & (e < value_dim)[None, :],
            other=0.0,
        )
        out += weight[:, None] * sums
    all_weights = tl.sum(weight_sum, 0)
    if has_sinks:
        all_weights += tl.exp(sink - top)
    mean = tl.sum(out, 0) / all_weights
    tl.store(result + head * value_dim + e, mean.to(result.dtype.element_ty), mask=e < value_dim)


@triton.jit
def _first_visible(length, window, chunk):  # type: ignore[no-untyped-def]
    """The first position that the last of `length` tokens sees; a `chunk` of 0 is none."""
    first = tl.maximum(length - window, 0)
    in_chunk = (length - 1) // tl.maximum(chunk, 1) * chunk
    return tl.maximum(first, in_chunk)


@triton.jit  # type: ignore[untyped-decorator]
def _piece_len(  # type: ignore[no-untyped-def]
    span, most: tl.constexpr, shortest: tl.constexpr, tile: tl.constexpr
):
    """Tokens of each piece of a context of `span` tokens: whole tiles, `most` pieces at most."""
    tiles = (span + most * tile - 1) // (most * tile)
    return tl.maximum(tiles * tile, shortest)


@triton.jit  # type: ignore[untyped-decorator]
def _from_stored(x, mantissa: tl.constexpr):  # type: ignore[no-untyped-def]
    """Read the bits of float8_e4m3fn or e5m2 as float32; without a mantissa, x unchanged."""
    if mantissa == 0:
        return x
    else:  # noqa: RET505 - Triton compiles only the branch that is taken
        bias: tl.constexpr = 7 if mantissa == 3 else 15
        rebase: tl.constexpr = 2.0 ** (127 - bias)
        code = x.to(tl.int32)
        bits = ((code & 0x80) << 24) | ((code & 0x7F) << (23 - mantissa))
        number = bits.to(tl.float32, bitcast=True) * rebase
        return tl.where((code & 0x7F) == 0x7F, float("nan"), number)
