"""Sampling on the device, without reading anything back.

The rules of container.model.sampling.sampler in the same order: greedy rows take the most likely
token; other rows apply temperature, top_k, top_p, typical_p and min_p, then a number in [0, 1)
picks a token by inverse transform in the order of the ids. No shape and no branch depends on a
value on the device, so the host runs ahead of it: one copy to the device, none back.

The result differs from the host's in rounding alone. Both use float32 weights, but the host's
top-k fast path uses float64. Here pieces of 256 weights are summed in float32 and the pieces in
float64. So a token can differ if a number, or the mass of top_p or typical_p, is within some 1e-7
of a boundary between two tokens, or if two tokens on either side of the entropy are equally far
from it except for rounding. The tokens that top_k keeps are exact. min_p's limit is the same
formula, whose logarithm may differ in the last bit between devices.

A row's token depends on the row alone: each piece is summed by itself, and sums over whole rows are
in float64, where another order of the sum changes some 1e-16 of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from container.messages.engine import SamplingParams
from container.model.sampling.rng import BELOW_ONE, PIECE, divisor

# Most logits that topk lists; it sorts its result in one thread block's memory.
LONGEST_LIST = 1024
HIDDEN = float("-inf")
NO_LIMIT = float("inf")
# int32's limits: the sign bit alone, and all the others.
_LOWEST, _HIGHEST = -(2**31), 2**31 - 1


@dataclass(frozen=True, slots=True)
class _Filter:
    """A filter and the rows that use it.

    `hides` takes logits [places, vocabulary] and columns [places, 1] in float64, and returns a bool
    for each logit. `places` are indices into the sampled rows, in ascending order.
    """

    hides: Callable[..., torch.Tensor]
    places: list[int]
    columns: list[list[float]]


def choose(
    logits: torch.Tensor, params: list[SamplingParams], numbers: list[float]
) -> torch.Tensor:
    """Choose a token for each row of logits [rows, vocabulary]: int64 [rows], on their device.

    The logits are float32, with -inf for tokens that must not be chosen. A row with a temperature
    is sampled by its number in [0, 1); its logits are left as processed by temperature and filters.
    """
    rows = [row for row, row_params in enumerate(params) if not row_params.is_greedy]
    if not rows:
        return logits.argmax(-1)
    sampled = [params[row] for row in rows]
    filters = _filters(sampled, logits.shape[-1])
    lists: list[Sequence[float]] = [rows]
    lists += [[numbers[row] for row in rows], [divisor(row_params) for row_params in sampled]]
    for row_filter in filters:
        lists += [row_filter.places, *row_filter.columns]
    columns = _moved(lists, logits.device)
    index, threshold, divisors = next(columns).long(), next(columns), next(columns)
    if len(rows) == len(params):
        _apply_filters(logits, divisors, filters, columns)
        return _inverse_cdf(logits, threshold)
    # The argmax of all rows costs less than a copy of the greedy rows.
    token_ids = logits.argmax(-1)
    selected = logits.index_select(0, index)
    _apply_filters(selected, divisors, filters, columns)
    logits.index_copy_(0, index, selected)  # requests may ask for their log-probabilities
    return token_ids.index_copy_(0, index, _inverse_cdf(selected, threshold))


def _moved(columns: Sequence[Sequence[float]], device: torch.device) -> Iterator[torch.Tensor]:
    """Copy columns of any lengths at once, as float64, which represents indices exactly too."""
    # A copy from pinned memory does not block the host; torch keeps the memory until it is done.
    flat = torch.tensor(
        [value for column in columns for value in column],
        dtype=torch.float64,
        pin_memory=device.type == "cuda",
    )
    moved = flat.to(device, non_blocking=True)
    return iter(moved.split([len(column) for column in columns]))


def _filters(params: list[SamplingParams], vocabulary: int) -> list[_Filter]:
    """Collect the filters that the rows use, in the order in which they apply."""
    limit = min(LONGEST_LIST, vocabulary - 1)

    def places(is_used: Callable[[SamplingParams], bool]) -> list[int]:
        return [index for index, row_params in enumerate(params) if is_used(row_params)]

    def values(of: list[int], value: Callable[[SamplingParams], float]) -> list[float]:
        return [value(params[index]) for index in of]

    listed = places(lambda p: 0 < p.top_k <= limit)
    long = places(lambda p: limit < p.top_k < vocabulary)
    nucleus = places(lambda p: p.top_p < 1.0 and not 0 < p.top_k <= limit)
    typical = places(lambda p: p.typical_p < 1.0)
    min_p = places(lambda p: p.min_p > 0.0)
    masses = values(listed, lambda p: p.top_p if p.top_p < 1.0 else NO_LIMIT)
    beyond_list = partial(
        _beyond_list,
        length=max((params[index].top_k for index in listed), default=0),
        has_mass=any(mass < 1.0 for mass in masses),
    )
    filters = [
        _Filter(beyond_list, listed, [values(listed, lambda p: p.top_k), masses]),
        _Filter(_beyond_count, long, [values(long, lambda p: p.top_k)]),
        _Filter(_beyond_nucleus, nucleus, [values(nucleus, lambda p: p.top_p)]),
        _Filter(_untypical, typical, [values(typical, lambda p: p.typical_p)]),
        _Filter(_unlikely, min_p, [values(min_p, lambda p: p.min_p)]),
    ]
    return [row_filter for row_filter in filters if row_filter.places]


def _apply_filters(
    logits: torch.Tensor,
    divisors: torch.Tensor,
    filters: list[_Filter],
    columns: Iterator[torch.Tensor],
) -> None:
    """Apply temperature and filters to logits [rows, vocabulary], in place.

    `divisors` are [rows]; `columns` has, for each filter, its places and then its columns.
    """
    logits.div_(divisors.float()[:, None])
    for row_filter in filters:
        index = next(columns).long()
        values = [next(columns)[:, None] for _ in row_filter.columns]
        if len(row_filter.places) == len(logits):
            logits.masked_fill_(row_filter.hides(logits, *values), HIDDEN)
        else:
            part = logits.index_select(0, index)
            part.masked_fill_(row_filter.hides(part, *values), HIDDEN)
            logits.index_copy_(0, index, part)


def _beyond_list(
    logits: torch.Tensor,
    count: torch.Tensor,
    mass: torch.Tensor,
    *,
    length: int,
    has_mass: bool,
) -> torch.Tensor:
    """Find the tokens that a small top_k hides, and then top_p if any row `has_mass`.

    Uses torch's topk, a radix selection that reads the logits some five times in a few kernels; the
    search of `_threshold` reads them 32 times. `length` is the largest count; a mass of NO_LIMIT
    hides nothing.
    """
    best = logits.topk(length, -1).values
    floor = best.gather(-1, count.long() - 1)
    if has_mass:
        # Tokens as likely as the last one of the list are kept, so they count.
        total = _total(_weights(logits.masked_fill(logits < floor, HIDDEN)))
        reached = (best - best[:, :1]).exp_().cumsum(-1, dtype=torch.float64)
        # The first token at which the mass is reached is the last one kept.
        last = (reached < mass * total).sum(-1, keepdim=True).clamp_(max=length - 1)
        floor = torch.maximum(floor, best.gather(-1, last))
    return logits < floor


def _beyond_count(logits: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Find the tokens that a large top_k hides: all less likely than `count` others."""
    keys = _keys(_padded(logits))
    return keys[:, : logits.shape[-1]] < _threshold(keys, logits.new_ones(()), count)


def _beyond_nucleus(logits: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Find the tokens that top_p hides: all but the fewest most likely ones reaching the mass."""
    weights = _weights(logits)
    keys = _keys(_padded(logits))
    return keys[:, : logits.shape[-1]] < _threshold(keys, weights, mass * _total(weights))


def _untypical(logits: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Find all but the tokens whose information is nearest to the entropy (Meister et al., 2022).

    As on the host: entropy -sum p log p, distance |-log p - entropy|, both in nats.
    """
    logprobs = _padded(logits).log_softmax(-1)
    probabilities = logprobs.exp()
    # Hidden tokens yield 0 times infinity, a NaN, which nansum leaves out.
    parts = (logprobs * probabilities).unflatten(-1, (-1, PIECE)).nansum(-1)
    entropy = -parts.sum(-1, keepdim=True, dtype=torch.float64).float()
    keys = _keys(logprobs.add_(entropy).abs_().neg_())  # nearest first
    return keys[:, : logits.shape[-1]] < _threshold(keys, probabilities, mass)


def _unlikely(logits: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Find the tokens that min_p hides: less likely than a share of the most likely one."""
    return logits < logits.amax(-1, keepdim=True) + share.float().log()


def _inverse_cdf(logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution of each row of logits [rows, vocabulary]: int64 [rows].

    `numbers` are float64 [rows]. Works in two stages: select a piece of the vocabulary, then a
    token of the piece.
    """
    pieces = _weights(logits).unflatten(-1, (-1, PIECE))
    ends = pieces.sum(-1).cumsum(-1, dtype=torch.float64)  # [rows, pieces]
    threshold = torch.minimum(numbers[:, None] * ends[:, -1:], ends[:, -1:] * BELOW_ONE)
    # Clamped for rows of NaN only, which have no meaningful token.
    piece = torch.searchsorted(ends, threshold, right=True).clamp_(max=ends.shape[-1] - 1)
    # Not `where`: torch could copy its Python scalar to the device, and wait.
    before = ends.gather(-1, (piece - 1).clamp_(min=0)).masked_fill_(piece == 0, 0.0)
    inside = pieces.gather(1, piece[..., None].expand(-1, 1, PIECE))[:, 0]
    inside = inside.cumsum(-1, dtype=torch.float64)
    # Strictly greater than the threshold, so that a token of probability 0 is never picked.
    threshold = torch.minimum(threshold - before, inside[:, -1:] * BELOW_ONE)
    offset = torch.searchsorted(inside, threshold, right=True)
    return (piece * PIECE + offset)[:, 0].clamp_(max=logits.shape[-1] - 1)


def _threshold(keys: torch.Tensor, weights: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Find the greatest key such that tokens with this or a greater key weigh the threshold.

    Shapes: keys int32 [rows, padded], weights float32 the same or [], threshold float64 [rows, 1];
    returns int32 [rows, 1]. Returns the least int32 if even all tokens together weigh too little.

    Searches the key bit by bit, highest first, so the result is exact after 32 rounds for any
    values. It takes 13 bytes for each logit: keys, weights, masked weights and a mask. A sort of
    the vocabulary reads and writes less, but moves a 64-bit index with each logit: in and out at
    least 24 bytes, before any sum.
    """
    threshold = threshold.clamp(
        min=torch.finfo(threshold.dtype).tiny
    )  # so that at least one is kept
    zero = weights.new_zeros(())  # on the device; torch could copy a Python scalar there
    key = torch.full_like(keys[:, :1], _LOWEST)
    for bit in reversed(range(32)):
        greater = key ^ (_LOWEST if bit == 31 else 1 << bit)
        total_above = _total(torch.where(keys >= greater, weights, zero))
        key = torch.where(total_above >= threshold, greater, key)
    return key


def _keys(values: torch.Tensor) -> torch.Tensor:
    """Map float32 to int32 in the same order; 0 and -0 map to the same key.

    A float's bits are sign and magnitude: all bits of negative ones but the sign are inverted.
    """
    bits = (values + 0.0).view(torch.int32)  # -0 + 0 is 0
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(_HIGHEST))


def _weights(logits: torch.Tensor) -> torch.Tensor:
    """Exponentiate logits [rows, vocabulary] to weights [rows, padded], the largest being 1."""
    return (_padded(logits) - logits.amax(-1, keepdim=True)).exp_()


def _total(weights: torch.Tensor) -> torch.Tensor:
    """Sum weights [rows, padded], the pieces' sums in float64: [rows, 1]."""
    pieces = weights.unflatten(-1, (-1, PIECE)).sum(-1)
    return pieces.sum(-1, keepdim=True, dtype=torch.float64)


def _padded(logits: torch.Tensor) -> torch.Tensor:
    """Pad rows to whole pieces with hidden tokens; no copy if no padding is needed."""
    rest = -logits.shape[-1] % PIECE
    return torch.nn.functional.pad(logits, (0, rest), value=HIDDEN) if rest else logits
