"""The rules of sampling, which host and device share.

Greedy rows take the most likely token. Other rows apply temperature, top_k, top_p, typical_p and
min_p; then a number in [0, 1) picks a token by inverse transform in the order of the ids. No shape
and no branch here depends on a tensor's values, so on a device the host need not wait: one copy to
the device, none back.

Only the search for the most likely tokens differs between host and device: see `Selector`. Their
results differ in rounding alone. A token can differ if a number, or the mass of top_p or typical_p,
is within some 1e-7 of a boundary between two tokens, or if two tokens on either side of the entropy
are equally far from it except for rounding. The tokens that top_k keeps are exact. min_p's limit is
the same formula, whose logarithm may differ in the last bit between devices.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from container.messages.engine import SamplingParams
from container.model.sampling.distribution import (
    HIDDEN,
    in_pieces,
    inverse_cdf,
    padded,
    total,
    weights_of,
)
from container.model.sampling.rng import divisor

NO_LIMIT = float("inf")


class Selector(Protocol):
    """Finds the largest values of rows."""

    @property
    def longest_list(self) -> int:
        """The largest count that `largest` accepts."""
        ...

    def largest(self, values: torch.Tensor, count: int) -> torch.Tensor:
        """Return the largest values of each row of [rows, width], in descending order."""
        ...

    def mass_floor(
        self, values: torch.Tensor, weights: torch.Tensor, mass: torch.Tensor
    ) -> torch.Tensor:
        """Return the value down to which a row's largest values weigh at least the mass: [rows, 1].

        `values` and `weights` are [rows, width], `mass` is float64 [rows, 1]. The floor of too
        small a mass is the largest value; of too large a mass, one that no value is below.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Filter:
    """A filter and the rows that use it.

    `hides` takes logits [rows, vocabulary] and columns [rows, 1] in float64, and returns a bool
    for each logit. `rows` are indices into the sampled rows, in ascending order.
    """

    hides: Callable[..., torch.Tensor]
    rows: list[int]
    columns: list[list[float]]


def choose_tokens(
    logits: torch.Tensor, params: list[SamplingParams], numbers: list[float], selector: Selector
) -> torch.Tensor:
    """Choose a token for each row of logits [rows, vocabulary]: int64 [rows], on their device.

    The logits have -inf for tokens that must not be chosen. A row with a temperature is sampled by
    its number in [0, 1); its logits are left as processed by temperature and filters.
    """
    rows = [row for row, row_params in enumerate(params) if not row_params.is_greedy]
    if not rows:
        return logits.argmax(-1)
    sampled = [params[row] for row in rows]
    filters = _filters(sampled, logits.shape[-1], selector)
    lists: list[Sequence[float]] = [rows]
    lists += [[numbers[row] for row in rows], [divisor(row_params) for row_params in sampled]]
    for row_filter in filters:
        lists += [row_filter.rows, *row_filter.columns]
    columns = _moved(lists, logits.device)
    index, threshold, divisors = next(columns).long(), next(columns), next(columns)
    if len(rows) == len(params):
        _apply_filters(logits, divisors, filters, columns)
        return inverse_cdf(logits, threshold)
    # The argmax of all rows costs less than a copy of the greedy rows.
    token_ids = logits.argmax(-1)
    selected = logits.index_select(0, index)
    _apply_filters(selected, divisors, filters, columns)
    logits.index_copy_(0, index, selected)  # requests may ask for their log-probabilities
    return token_ids.index_copy_(0, index, inverse_cdf(selected, threshold))


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


def _filters(params: list[SamplingParams], vocabulary: int, selector: Selector) -> list[_Filter]:
    """Collect the filters that the rows use, in the order in which they apply."""
    limit = min(selector.longest_list, vocabulary - 1)

    def rows(is_used: Callable[[SamplingParams], bool]) -> list[int]:
        return [index for index, row_params in enumerate(params) if is_used(row_params)]

    def values(of: list[int], value: Callable[[SamplingParams], float]) -> list[float]:
        return [value(params[index]) for index in of]

    listed = rows(lambda p: 0 < p.top_k <= limit)
    long = rows(lambda p: limit < p.top_k < vocabulary)
    nucleus = rows(lambda p: p.top_p < 1.0 and not 0 < p.top_k <= limit)
    typical = rows(lambda p: p.typical_p < 1.0)
    min_p = rows(lambda p: p.min_p > 0.0)
    masses = values(listed, lambda p: p.top_p if p.top_p < 1.0 else NO_LIMIT)
    beyond_list = partial(
        _beyond_list,
        length=max((params[index].top_k for index in listed), default=0),
        has_mass=any(mass < 1.0 for mass in masses),
        selector=selector,
    )
    filters = [
        _Filter(beyond_list, listed, [values(listed, lambda p: p.top_k), masses]),
        _Filter(partial(_beyond_count, selector), long, [values(long, lambda p: p.top_k)]),
        _Filter(partial(_beyond_nucleus, selector), nucleus, [values(nucleus, lambda p: p.top_p)]),
        _Filter(partial(_untypical, selector), typical, [values(typical, lambda p: p.typical_p)]),
        _Filter(_unlikely, min_p, [values(min_p, lambda p: p.min_p)]),
    ]
    return [row_filter for row_filter in filters if row_filter.rows]


def _apply_filters(
    logits: torch.Tensor,
    divisors: torch.Tensor,
    filters: list[_Filter],
    columns: Iterator[torch.Tensor],
) -> None:
    """Apply temperature and filters to logits [rows, vocabulary], in place.

    `divisors` are [rows]; `columns` has, for each filter, its rows and then its columns.
    """
    logits.div_(divisors.to(logits.dtype)[:, None])
    for row_filter in filters:
        index = next(columns).long()
        values = [next(columns)[:, None] for _ in row_filter.columns]
        if len(row_filter.rows) == len(logits):
            logits.masked_fill_(row_filter.hides(logits, *values), HIDDEN)
        else:
            part = logits.index_select(0, index)
            part.masked_fill_(row_filter.hides(part, *values), HIDDEN)
            logits.index_copy_(0, index, part)


def list_floor(ordered: torch.Tensor, weights: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Return the first value of a descending list with which the mass is reached: [rows, 1].

    `ordered` and `weights` are [rows, length], `mass` is float64 [rows, 1]; the last value if the
    whole list weighs less.
    """
    reached = weights.cumsum(-1, dtype=torch.float64)
    last = (reached < mass).sum(-1, keepdim=True).clamp_(max=ordered.shape[-1] - 1)
    return ordered.gather(-1, last)


def _beyond_list(
    logits: torch.Tensor,
    count: torch.Tensor,
    mass: torch.Tensor,
    *,
    length: int,
    has_mass: bool,
    selector: Selector,
) -> torch.Tensor:
    """Find the tokens that a small top_k hides, and then top_p if any row `has_mass`.

    On a device, torch's topk is a radix selection that reads the logits some five times in a few
    kernels; the search of `mass_floor` reads them 32 times. `length` is the largest count; a mass
    of NO_LIMIT hides nothing.
    """
    best = selector.largest(logits, length)
    floor = best.gather(-1, count.long() - 1)
    if has_mass:
        # Tokens as likely as the last one of the list stay, so they count.
        limit = mass * total(weights_of(logits.masked_fill(logits < floor, HIDDEN)))
        floor = torch.maximum(floor, list_floor(best, (best - best[:, :1]).exp_(), limit))
    return logits < floor


def _beyond_count(selector: Selector, logits: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Find the tokens that a large top_k hides: all less likely than `count` others."""
    values = padded(logits)
    ones = values.new_ones(()).expand_as(values)
    return logits < selector.mass_floor(values, ones, count)


def _beyond_nucleus(selector: Selector, logits: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Find the tokens that top_p hides: all but the fewest most likely ones reaching the mass."""
    weights = weights_of(logits)
    return logits < selector.mass_floor(padded(logits), weights, mass * total(weights))


def _untypical(selector: Selector, logits: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Find all but the tokens whose information is nearest to the entropy (Meister et al., 2022).

    Entropy: -sum p log p, distance: |-log p - entropy|, both in nats.
    """
    logprobs = padded(logits).log_softmax(-1)
    probabilities = logprobs.exp()
    # Hidden tokens yield 0 times infinity, a NaN, which nansum leaves out.
    parts = in_pieces(logprobs * probabilities).nansum(-1)
    entropy = -parts.sum(-1, keepdim=True, dtype=torch.float64).to(logits.dtype)
    nearness = logprobs.add_(entropy).abs_().neg_()
    floor = selector.mass_floor(nearness, probabilities, mass)
    return nearness[:, : logits.shape[-1]] < floor


def _unlikely(logits: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """Find the tokens that min_p hides: less likely than a fraction of the most likely one."""
    return logits < logits.amax(-1, keepdim=True) + fraction.to(logits.dtype).log()
