"""Sampling on the host: the rules of container.model.sampling.rules, on short lists if possible.

The top-k fast path serves requests with a small top_k or a top_p: it lists the most likely tokens
of each row and applies the rules to the lists, not to the whole vocabulary. A row's token depends
on its own logits and parameters only.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch

from container.engine.sequence import Sequence
from container.messages.engine import LogprobMode, SamplingParams
from container.model.async_copy import take_rows
from container.model.kernels.cpu import Kernels, argmax
from container.model.sampling.distribution import HIDDEN
from container.model.sampling.rng import divisor, row_numbers
from container.model.sampling.rules import choose_tokens, list_floor

# The largest top_k of the fast path: a longer list costs as much as the whole vocabulary.
MAX_TOP_K = 512
# Without top_k, the fast path lists this many tokens; if top_p needs more, it gives up.
PROBE = 64
# Most nuclei have at most the first number of tokens and nearly all the second.
NUCLEUS_PROBES = (1024, 16384)
Array = np.ndarray[Any, np.dtype[Any]]


class HostSelector:
    """Selects by numpy, which sorts with vector instructions: faster than torch (docs/LOG.md)."""

    longest_list = sys.maxsize

    def largest(self, values: torch.Tensor, count: int) -> torch.Tensor:
        """Return the largest values of each row, in descending order: [rows, count]."""
        return torch.from_numpy(_largest(values.numpy(), count))

    def mass_floor(
        self, values: torch.Tensor, weights: torch.Tensor, mass: torch.Tensor
    ) -> torch.Tensor:
        """Sort as many of the largest values as the mass of every row needs."""
        width = values.shape[-1]
        for count in (*(probe for probe in NUCLEUS_PROBES if probe < width), width):
            order = torch.from_numpy(_order(values.numpy(), count))
            of_largest = weights.gather(-1, order)
            if count == width or bool((of_largest.sum(-1, dtype=mass.dtype) >= mass[:, 0]).all()):
                break
        return list_floor(values.gather(-1, order), of_largest, mass)


_SELECTOR = HostSelector()


def can_use_topk_path(params: SamplingParams) -> bool:
    """Whether the top-k fast path may be able to sample a request's tokens."""
    is_limited = 0 < params.top_k <= MAX_TOP_K or (params.top_k == 0 and params.top_p < 1.0)
    return not params.is_greedy and is_limited and params.logprobs is not LogprobMode.PROCESSED


def sample_topk(
    logits: torch.Tensor, params: list[SamplingParams], numbers: list[float]
) -> list[int | None]:
    """Sample a token for each row of logits [rows, vocabulary], without changing the logits.

    Returns None for a row whose list would be too long, or that has no finite logit.
    """
    listed = _list_largest(logits.numpy(), params)
    fractions = _listed_fractions(logits, listed, params)
    # top_k has cut the list already; top_p is a fraction of the whole vocabulary's weights.
    list_params = [
        msgspec.structs.replace(row_params, top_k=0, top_p=min(row_params.top_p / fraction, 1.0))
        for row_params, fraction in zip(params, fractions, strict=True)
    ]
    index = choose_tokens(torch.from_numpy(listed.values), list_params, numbers, _SELECTOR)
    token_ids = np.take_along_axis(listed.ids, index.numpy()[:, None], -1)[:, 0].tolist()
    usable = np.isfinite(listed.values.max(-1)).tolist()
    return [
        token_id if is_usable and row_params.top_p <= fraction else None
        for token_id, is_usable, row_params, fraction in zip(
            token_ids, usable, params, fractions, strict=True
        )
    ]


@dataclass(frozen=True, slots=True)
class _Listed:
    """The most likely tokens of each row, in the order of their ids: [rows, longest].

    `values` are their logits in float64, -inf after the end of a shorter list.
    """

    ids: Array
    values: Array


def _list_largest(logits: Array, params: list[SamplingParams]) -> _Listed:
    """List the top_k most likely tokens of each row, PROBE without top_k, with ties of the last."""
    lengths = [min(row_params.top_k or PROBE, logits.shape[-1]) for row_params in params]
    best = _largest(logits, max(lengths))
    # Tokens that a grammar hides are never listed, even if fewer than k remain.
    worst = np.maximum(
        best[range(len(params)), np.subtract(lengths, 1)], np.finfo(logits.dtype).min
    )
    rows, ids = np.nonzero(logits >= worst[:, None])
    counts = np.bincount(rows, minlength=len(params))
    columns = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
    shape = len(params), max(int(counts.max()), 1)
    listed = _Listed(np.zeros(shape, np.int64), np.full(shape, HIDDEN))
    listed.ids[rows, columns], listed.values[rows, columns] = ids, logits[rows, ids]
    return listed


def _listed_fractions(
    logits: torch.Tensor, listed: _Listed, params: list[SamplingParams]
) -> list[float]:
    """Return the fraction of each row's weights in its list; 1 with top_k, which cuts the rest.

    It is computed after temperature, and NaN for a row without a finite logit.
    """
    fractions = [1.0] * len(params)
    if rows := [row for row, row_params in enumerate(params) if not row_params.top_k]:
        divisors = torch.tensor([divisor(params[row]) for row in rows])[:, None]

        def sum_weights(numbers: torch.Tensor) -> torch.Tensor:
            selected = take_rows(numbers, rows)
            scaled = (selected - selected.amax(-1, keepdim=True)).div_(divisors)
            return scaled.exp_().sum(-1)

        of_rows = sum_weights(torch.from_numpy(listed.values)) / sum_weights(logits)
        for row, fraction in zip(rows, of_rows.tolist(), strict=True):
            fractions[row] = fraction
    return fractions


def _largest(values: Array, count: int) -> Array:
    """Return the largest of each row of [rows, width], in descending order: [rows, count]."""
    first = values.shape[-1] - count
    best = np.partition(values, first, -1)[:, first:] if first else values
    return np.sort(best, -1)[:, ::-1].copy()


def _order(values: Array, count: int) -> Array:
    """Return the indices of the largest of each row, in descending order: [rows, count]."""
    first = values.shape[-1] - count
    if not first:
        return np.argsort(values, -1)[:, ::-1].copy()
    best = np.argpartition(values, first, -1)[:, first:]
    order = np.argsort(np.take_along_axis(values, best, -1), -1)[:, ::-1]
    return np.take_along_axis(best, order, -1)


def choose_on_host(
    logits: torch.Tensor, sequences: list[Sequence], kernels: Kernels | None
) -> list[int]:
    """Take the most likely token of greedy rows and sample the other rows'."""
    token_ids: list[int | None] = [None] * len(sequences)
    if greedy := rows_where(sequences, lambda p: p.is_greedy):
        _put(token_ids, greedy, argmax(take_rows(logits, greedy), kernels).tolist())
    if listed := rows_where(sequences, can_use_topk_path):
        params, numbers = params_of(sequences, listed), row_numbers(sequences, listed)
        _put(token_ids, listed, sample_topk(take_rows(logits, listed), params, numbers))
    # The remaining rows need the whole vocabulary.
    if rows := [row for row, token_id in enumerate(token_ids) if token_id is None]:
        selected = take_rows(logits, rows)
        params, numbers = params_of(sequences, rows), row_numbers(sequences, rows)
        _put(token_ids, rows, choose_tokens(selected, params, numbers, _SELECTOR).tolist())
        if selected is not logits:
            logits[rows] = selected  # requests may ask for their log-probabilities
    return [token_id for token_id in token_ids if token_id is not None]


def _put(token_ids: list[int | None], rows: list[int], chosen: Iterable[int | None]) -> None:
    """Set the token ids of these rows."""
    for row, token_id in zip(rows, chosen, strict=True):
        token_ids[row] = token_id


def params_of(sequences: list[Sequence], rows: list[int]) -> list[SamplingParams]:
    """Return the sampling parameters of these rows."""
    return [sequences[row].params for row in rows]


def rows_where(sequences: list[Sequence], wants: Callable[[SamplingParams], bool]) -> list[int]:
    """Return the rows whose parameters fulfil a condition."""
    return [row for row, sequence in enumerate(sequences) if wants(sequence.params)]
