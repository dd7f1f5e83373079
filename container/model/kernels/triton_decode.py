"""The Triton kernels behind triton_attention.decode_attention, whose rules hold here, too."""

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

# Lengths, widths and counts that differ between steps are not looked at when a kernel is
# compiled: there is one form of each for a model.
STEP_ARGUMENTS = ["tables", "lens", "stride", "bias_stride", "pieces", "window", "chunk"]


@triton.jit(do_not_specialize=STEP_ARGUMENTS)  # type: ignore[untyped-decorator]
def attend_piece(  # type: ignore[no-untyped-def]
    query, keys, values, tables, lens, key_bias, part, highest, total,
    stride, bias_stride, pieces, window, chunk, scale,
    heads: tl.constexpr, kv_heads: tl.constexpr, dim: tl.constexpr, value_dim: tl.constexpr,
    block_size: tl.constexpr, softcap: tl.constexpr, has_bias: tl.constexpr, most: tl.constexpr,
    shortest: tl.constexpr, tile: tl.constexpr, mantissa: tl.constexpr, product: tl.constexpr,
    dim_pad: tl.constexpr, value_pad: tl.constexpr, rest_pad: tl.constexpr,
    is_latent: tl.constexpr, group_pad: tl.constexpr, head_tiles: tl.constexpr,
):  # fmt: skip
    """Attend a tile of the query heads of one KV head to one piece of a row's context.

    `part` gets the sum of the values by weight, before it is divided by `total`, the sum of the
    weights; `highest` is the score whose weight is 1. `stride` is from a row of tables to the next.
    """
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) // head_tiles
    piece = tl.program_id(2)
    length = tl.load(lens + row)
    first = _first_visible(length, window, chunk)
    piece_len = _piece_len(length - first, most, shortest, tile)
    start = first + piece * piece_len
    if start >= length:
        return
    stop = tl.minimum(start + piece_len, length)

    group: tl.constexpr = heads // kv_heads
    member = tl.program_id(1) % head_tiles * group_pad + tl.arange(0, group_pad)
    in_group = member < group
    d = tl.arange(0, dim_pad)
    e = tl.arange(0, value_pad)
    head = row * heads + kv_head * group + member
    main_dim: tl.constexpr = value_dim if is_latent else dim
    q = tl.load(
        query + head[:, None] * dim + d[None, :],
        mask=in_group[:, None] & (d < main_dim)[None, :],
        other=0.0,
    )
    if is_latent:
        r = main_dim + tl.arange(0, rest_pad)
        q_rest = tl.load(
            query + head[:, None] * dim + r[None, :],
            mask=in_group[:, None] & (r < dim)[None, :],
            other=0.0,
        )
    top = tl.full([group_pad], float("-inf"), tl.float32)
    weight_sum = tl.full([group_pad], 0.0, tl.float32)
    out = tl.full([group_pad, value_pad], 0.0, tl.float32)
    for at in range(start, stop, tile):
        # The first of these is always seen, so no row of scores is hidden altogether.
        position = at + tl.arange(0, tile)
        in_context = position < stop
        block = tl.load(tables + row * stride + position // block_size, mask=in_context, other=0)
        cache_row = (block.to(tl.int64) * kv_heads + kv_head) * block_size + position % block_size
        k = tl.load(
            keys + cache_row[:, None] * dim + d[None, :],
            mask=in_context[:, None] & (d < main_dim)[None, :],
            other=0.0,
        )
        k = _from_stored(k, mantissa).to(q.dtype).to(product)
        scores = tl.dot(q.to(product), tl.trans(k), input_precision="ieee")
        if is_latent:
            k_rest = tl.load(
                keys + cache_row[:, None] * dim + r[None, :],
                mask=in_context[:, None] & (r < dim)[None, :],
                other=0.0,
            )
            k_rest = _from_stored(k_rest, mantissa).to(q.dtype).to(product)
            scores += tl.dot(q_rest.to(product), tl.trans(k_rest), input_precision="ieee")
            v = k
        else:
            v = tl.load(
                values + cache_row[:, None] * value_dim + e[None, :],
                mask=in_context[:, None] & (e < value_dim)[None, :],
                other=0.0,
            )
            v = _from_stored(v, mantissa).to(q.dtype).to(product)
        scores *= scale
        if softcap > 0.0:
            scores = softcap * _tanh(scores / softcap)
        if has_bias:
            scores += tl.load(
                key_bias + (kv_head * group + member)[:, None] * bias_stride + position[None, :],
                mask=in_group[:, None] & in_context[None, :],
                other=0.0,
            ).to(tl.float32)
        scores = tl.where(in_context[None, :], scores, float("-inf"))
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
def join_pieces(  # type: ignore[no-untyped-def]
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
def _tanh(x):  # type: ignore[no-untyped-def]
    """Compute tanh in float32; near 0, where exp(x) - 1 loses digits, by its series."""
    square = x * x
    near = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
    fade = tl.exp(-2 * tl.abs(x))
    far = tl.where(x < 0, -1.0, 1.0) * (1 - fade) / (1 + fade)
    return tl.where(tl.abs(x) < 0.2, near, far)


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
