"""The choice of tokens without reading anything back from the device.

The rules of container.model.sampling.sampler in the same order: greedy rows take the most likely
token; the others have temperature, top_k, top_p, typical_p and min_p applied, then a number in [0,
1) picks a token by inverse transform in the order of the ids. No shape and no branch depends on a
value on the device, so the host runs ahead of it: one copy goes there, none comes back.

How it differs from the CPU's way: in rounding alone. Weights are float32 there and here, or
float64 where the CPU draws from a short list. Here pieces of 256 weights are added up in float32
and the pieces in float64. So a token can differ where a number, or a mass that top_p or typical_p
asks for, is within some 1e-7 of a limit between two tokens, or where two tokens on either side of
the entropy are equally far from it but for rounding. Which tokens top_k keeps is exact. min_p's
limit is the same formula, whose logarithm may differ by a last bit from device to device.

What a row gets depends on the row alone: a piece is added up by itself, and what adds up whole rows
does so in float64, where another order of the sum changes some 1e-16 of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from container.messages.engine import SamplingParams
from container.model.sampling.rng import BELOW_ONE, PIECE, divisor

# As many largest logits are listed at most; topk sorts what it found in one block's memory.
LONGEST_LIST = 1024
HIDDEN = float("-inf")
NO_LIMIT = float("inf")
# int32's limits: the sign bit alone, and all the others.
_LOWEST, _HIGHEST = -(2**31), 2**31 - 1


@dataclass(frozen=True, slots=True)
class _Filter:
    """A filter and the rows that want it.

    `hides` takes logits [places, vocabulary] and columns [places, 1] in float64, and gives a bool
    for each logit. `places` are among the rows drawn, in ascending order.
    """

    hides: Callable[..., torch.Tensor]
    places: list[int]
    columns: list[list[float]]


def choose(
    logits: torch.Tensor, params: list[SamplingParams], numbers: list[float]
) -> torch.Tensor:
    """Choose a token for each row of logits [rows, vocabulary]: int64 [rows], on their device.

    The logits are float32, with -inf for tokens that may not be chosen. A row with a temperature
    is drawn with its number in [0, 1); its logits are left as temperature and filters make them.
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
    # That of all rows costs less than a copy of the greedy ones.
    token_ids = logits.argmax(-1)
    selected = logits.index_select(0, index)
    _apply_filters(selected, divisors, filters, columns)
    logits.index_copy_(0, index, selected)  # log-probabilities may be wanted of these
    return token_ids.index_copy_(0, index, _inverse_cdf(selected, threshold))


def _moved(columns: Sequence[Sequence[float]], device: torch.device) -> Iterator[torch.Tensor]:
    """Move columns of any lengths in one copy; they arrive as float64, which holds places too."""
    # From pinned memory the copy does not hold up the host; torch keeps it until that is done.
    flat = torch.tensor(
        [value for column in columns for value in column],
        dtype=torch.float64,
        pin_memory=device.type == "cuda",
    )
    moved = flat.to(device, non_blocking=True)
    return iter(moved.split([len(column) for column in columns]))


def _filters(params: list[SamplingParams], vocabulary: int) -> list[_Filter]:
    """Find the filters that the rows want, in the order in which they apply."""
    limit = min(LONGEST_LIST, vocabulary - 1)

    def places(wants: Callable[[SamplingParams], bool]) -> list[int]:
        return [index for index, row_filter in enumerate(params) if wants(row_filter)]

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
    return [row_params for row_params in filters if row_params.places]


def _apply_filters(
    logits: torch.Tensor,
    divisors: torch.Tensor,
    filters: list[_Filter],
    columns: Iterator[torch.Tensor],
) -> None:
    """Apply temperature and filters to logits [rows, vocabulary], in place.

    `divisors` are [rows]; `columns` are those of the filters, each after its filter's places.
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
    """Find what a small top_k hides, and top_p after it if any row `has_mass`.

    A list of the largest, because torch's topk is a radix selection: it reads the logits some five
    times in a few kernels, where the search below reads them 32 times. `length` is the largest
    count; a mass of NO_LIMIT hides nothing.
    """
    best = logits.topk(length, -1).values
    floor = best.gather(-1, count.long() - 1)
    if has_mass:
        # Tokens as likely as the last one of the list are kept, so that they count.
        total = _total(_weights(logits.masked_fill(logits < floor, HIDDEN)))
        reached = (best - best[:, :1]).exp_().cumsum(-1, dtype=torch.float64)
        # The first token at which the mass is reached is the last one kept.
        last = (reached < mass * total).sum(-1, keepdim=True).clamp_(max=length - 1)
        floor = torch.maximum(floor, best.gather(-1, last))
    return logits < floor


def _beyond_count(logits: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Find what a large top_k hides: all that is less likely than so many tokens."""
    keys = _keys(_padded(logits))
    return keys[:, : logits.shape[-1]] < _threshold(keys, logits.new_ones(()), count)


def _beyond_nucleus(logits: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Find what top_p hides: all but the fewest most likely tokens that reach the mass."""
    weights = _weights(logits)
    keys = _keys(_padded(logits))
    return keys[:, : logits.shape[-1]] < _threshold(keys, weights, mass * _total(weights))


def _untypical(logits: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Find all but the tokens whose information is nearest to the entropy (Meister et al., 2022).

    As in the CPU's sampler: entropy -sum p log p, distance |-log p - entropy|, both in nats.
    """
    logprobs = _padded(logits).log_softmax(-1)
    probabilities = logprobs.exp()
    # What is hidden is 0 times infinity here, which is no number and is left out.
    parts = (logprobs * probabilities).unflatten(-1, (-1, PIECE)).nansum(-1)
    entropy = -parts.sum(-1, keepdim=True, dtype=torch.float64).float()
    keys = _keys(logprobs.add_(entropy).abs_().neg_())  # nearest first
    return keys[:, : logits.shape[-1]] < _threshold(keys, probabilities, mass)


def _unlikely(logits: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Find what min_p hides: tokens less likely than a share of the most likely one."""
    return logits < logits.amax(-1, keepdim=True) + share.float().log()


def _inverse_cdf(logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution of each row of logits [rows, vocabulary]: int64 [rows].

    `numbers` are float64 [rows]. In two stages: which piece of the vocabulary, then which token of
    the piece.
    """
    pieces = _weights(logits).unflatten(-1, (-1, PIECE))
    ends = pieces.sum(-1).cumsum(-1, dtype=torch.float64)  # [rows, pieces]
    threshold = torch.minimum(numbers[:, None] * ends[:, -1:], ends[:, -1:] * BELOW_ONE)
    # Clamped for rows without any number to go by; their token is as good as another.
    piece = torch.searchsorted(ends, threshold, right=True).clamp_(max=ends.shape[-1] - 1)
    # Not `where`: its plain number could be copied to the device, and waited for.
    before = ends.gather(-1, (piece - 1).clamp_(min=0)).masked_fill_(piece == 0, 0.0)
    inside = pieces.gather(1, piece[..., None].expand(-1, 1, PIECE))[:, 0]
    inside = inside.cumsum(-1, dtype=torch.float64)
    # Strictly greater than what is wanted: a token of probability 0 is never picked.
    threshold = torch.minimum(threshold - before, inside[:, -1:] * BELOW_ONE)
    offset = torch.searchsorted(inside, threshold, right=True)
    return (piece * PIECE + offset)[:, 0].clamp_(max=logits.shape[-1] - 1)


def _threshold(keys: torch.Tensor, weights: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Find the greatest key whose tokens, with all of greater keys, weigh what is wanted.

    Shapes: keys int32 [rows, padded], weights float32 the same or [], wanted float64 [rows, 1];
    gives int32 [rows, 1]. The least key of all where even all tokens are too light.

    A search for the key's bits, greatest first, so that it is exact after 32 rounds whatever the
    values. It holds 13 bytes for each logit: keys, weights, the weights kept and a mask. A sort of
    the vocabulary reads and writes less, but moves a 64-bit place with each logit: in and out at
    least 24 bytes, before anything is added up.
    """
    threshold = threshold.clamp(
        min=torch.finfo(threshold.dtype).tiny
    )  # so that at least one is kept
    nothing = weights.new_zeros(())  # on the device; a plain number could be copied there
    cut = torch.full_like(keys[:, :1], _LOWEST)
    for bit in reversed(range(32)):
        greater = cut ^ (_LOWEST if bit == 31 else 1 << bit)
        total_above = _total(torch.where(keys >= greater, weights, nothing))
        cut = torch.where(total_above >= threshold, greater, cut)
    return cut


def _keys(values: torch.Tensor) -> torch.Tensor:
    """Map float32 to int32 in the same order; 0 and -0 are the same.

    A float's bits are sign and magnitude: those of negative ones are reversed but for the sign.
    """
    bits = (values + 0.0).view(torch.int32)  # -0 + 0 is 0
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(_HIGHEST))


def _weights(logits: torch.Tensor) -> torch.Tensor:
    """Exponentiate logits [rows, vocabulary]: [rows, padded], the largest 1."""
    return (_padded(logits) - logits.amax(-1, keepdim=True)).exp_()


def _total(weights: torch.Tensor) -> torch.Tensor:
    """Add up weights [rows, padded], of the pieces in float64: [rows, 1]."""
    pieces = weights.unflatten(-1, (-1, PIECE)).sum(-1)
    return pieces.sum(-1, keepdim=True, dtype=torch.float64)


def _padded(logits: torch.Tensor) -> torch.Tensor:
    """Fill rows up to whole pieces with tokens that are hidden; not a copy where there are none."""
    rest = -logits.shape[-1] % PIECE
    return torch.nn.functional.pad(logits, (0, rest), value=HIDDEN) if rest else logits
