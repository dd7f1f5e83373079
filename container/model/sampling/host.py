"""Sampling on the host: filters and the inverse transform, with a top-k fast path.

The rules and their order are those of the device: temperature, top_k, top_p, typical_p, min_p, then
a number in [0, 1) picks a token by inverse transform in the order of the ids. The fast path serves
requests with a small top_k or a top_p without processing the whole vocabulary. A row's token
depends on its own logits and parameters only.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from container.engine.sequence import Sequence
from container.messages.engine import LogprobMode, SamplingParams
from container.model.async_copy import take_rows
from container.model.kernels.cpu import Kernels, argmax
from container.model.sampling.rng import BELOW_ONE, PIECE, divisor, row_numbers

# The largest top_k of the fast path: a longer list costs as much as the whole vocabulary.
MAX_TOP_K = 512
# Without top_k, the fast path lists this many tokens; if top_p needs more, it gives up.
PROBE = 64
Floats = np.ndarray[Any, np.dtype[np.float64]]
# Most nuclei have at most this many tokens, so these are summed first.
NUCLEUS_PROBE = 1024


def can_use_topk_path(params: SamplingParams) -> bool:
    """Whether the top-k fast path may be able to sample a request's tokens."""
    is_limited = 0 < params.top_k <= MAX_TOP_K or (params.top_k == 0 and params.top_p < 1.0)
    return (
        not params.is_greedy
        and is_limited
        and params.typical_p == 1.0
        and params.logprobs is not LogprobMode.PROCESSED
    )


def sample_topk(
    logits: torch.Tensor, params: list[SamplingParams], numbers: list[float]
) -> list[int | None]:
    """Sample a token for each row of logits [rows, vocabulary], without changing the logits.

    Returns None for a row whose list would be too long, or that has no finite logit.
    """
    vocabulary = logits.shape[-1]
    lengths = [min(row_params.top_k or PROBE, vocabulary) for row_params in params]
    best = largest(logits, max(lengths))
    last = torch.tensor(lengths, device=logits.device)[:, None] - 1
    # Tokens that a grammar hides are never listed, even if fewer than k remain.
    worst = best.gather(-1, last).clamp_(min=torch.finfo(logits.dtype).min)
    # top_k keeps all tokens that tie with the k-th.
    row, token_id = (logits >= worst).nonzero(as_tuple=True)
    values = logits[row, token_id].double().cpu().numpy()
    ids = token_id.cpu().numpy()
    cuts = np.cumsum(np.bincount(row.cpu().numpy(), minlength=len(params)))[:-1]
    lists = zip(np.split(values, cuts), np.split(ids, cuts), strict=True)
    totals = _totals(logits, params)
    sampled: list[int | None] = []
    for (row_values, row_ids), row_params, number, total in zip(
        lists, params, numbers, totals, strict=True
    ):
        index = _pick(row_values, row_params, number, total)
        sampled.append(None if index is None else int(row_ids[index]))
    return sampled


def largest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Return the largest logits of each row, in descending order: [rows, count]."""
    if logits.device.type != "cpu":
        return logits.topk(count, -1).values
    # numpy sorts with vector instructions: 30 times as fast as torch (docs/LOG.md).
    first = logits.shape[-1] - count
    best = np.partition(logits.numpy(), first, -1)[:, first:] if first else logits.numpy()
    return torch.from_numpy(np.sort(best, -1)[:, ::-1].copy())


def _totals(logits: torch.Tensor, params: list[SamplingParams]) -> list[float | None]:
    """Sum all weights of each row without top_k, the largest weight being 1; None with top_k."""
    totals: list[float | None] = [None] * len(params)
    rows = [row for row, row_params in enumerate(params) if not row_params.top_k]
    if rows:
        selected = take_rows(logits, rows)
        divisors = torch.tensor([divisor(params[row]) for row in rows], device=logits.device)
        scaled = (selected - selected.amax(-1, keepdim=True)).div_(divisors[:, None])
        for row, total in zip(rows, scaled.exp_().sum(-1).tolist(), strict=True):
            totals[row] = total
    return totals


def _pick(values: Floats, params: SamplingParams, number: float, total: float | None) -> int | None:
    """Return the list index of the token that a number in [0, 1) picks; see `sample_topk`."""
    if not len(values) or not np.isfinite(values.max()):
        return None
    weights = np.exp((values - values.max()) / divisor(params))
    if params.top_p < 1.0:
        ordered = np.sort(weights)[::-1]
        reached = np.cumsum(ordered) / (ordered.sum() if total is None else total)
        if total is not None and reached[-1] < params.top_p:
            return None
        # The first token at which the mass is reached is the last one kept.
        last_kept = min(int((reached < params.top_p).sum()), len(ordered) - 1)
        weights = np.where(weights >= ordered[last_kept], weights, 0.0)
    if params.min_p > 0.0:
        weights = np.where(weights >= params.min_p, weights, 0.0)  # the largest weight is 1
    cumulative = np.cumsum(weights)
    # Strictly greater, so that a removed token is never picked.
    index = np.searchsorted(cumulative, number * cumulative[-1], side="right")
    return int(min(index, len(values) - 1))


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
        _apply_filters(selected, params_of(sequences, rows))
        if selected is not logits:
            logits[rows] = selected  # requests may ask for their log-probabilities
        _put(token_ids, rows, _inverse_cdf(selected, row_numbers(sequences, rows)))
    return [token_id for token_id in token_ids if token_id is not None]


def _put(token_ids: list[int | None], rows: list[int], chosen: Iterable[int | None]) -> None:
    """Set the token ids of these rows."""
    for row, token_id in zip(rows, chosen, strict=True):
        token_ids[row] = token_id


def params_of(sequences: list[Sequence], rows: list[int]) -> list[SamplingParams]:
    """Return the sampling parameters of these rows."""
    return [sequences[row].params for row in rows]


def _apply_filters(logits: torch.Tensor, params: list[SamplingParams]) -> None:
    """Apply temperature and the filters to all rows, in place."""
    divisors = torch.tensor([divisor(row_params) for row_params in params], device=logits.device)
    logits.div_(divisors[:, None])
    vocabulary = logits.shape[-1]
    for row, row_params in enumerate(params):
        if 0 < row_params.top_k < vocabulary:
            worst = logits[row].topk(row_params.top_k).values[-1]
            logits[row].masked_fill_(logits[row] < worst, float("-inf"))
    rows = [row for row, row_params in enumerate(params) if row_params.top_p < 1.0]
    if rows:
        _apply_top_p(logits, rows, [params[row].top_p for row in rows])
    for row, row_params in enumerate(params):
        if row_params.typical_p < 1.0:
            _apply_typical_p(logits[row], row_params.typical_p)
        if row_params.min_p > 0.0:
            floor = logits[row].max() + torch.tensor(row_params.min_p).log()
            logits[row].masked_fill_(logits[row] < floor, float("-inf"))


def _apply_top_p(logits: torch.Tensor, rows: list[int], top_ps: list[float]) -> None:
    """Keep the fewest most likely tokens whose probabilities reach top_p; at least one."""
    index = torch.tensor(rows, device=logits.device)
    mass = torch.tensor(top_ps, device=logits.device, dtype=torch.float32)[:, None]
    selected = logits.index_select(0, index)
    total = selected.logsumexp(-1, keepdim=True)
    for count in (min(NUCLEUS_PROBE, logits.shape[-1]), logits.shape[-1]):
        best = largest(selected, count)
        cumulative = (best - total).exp().cumsum(-1)
        if bool((cumulative[:, -1:] >= mass).all()):
            break
    # The first token at which the mass is reached is the last one kept.
    last = (cumulative < mass).sum(-1, keepdim=True).clamp_(max=best.shape[-1] - 1)
    worst = best.gather(-1, last)
    logits.index_copy_(0, index, selected.masked_fill_(selected < worst, float("-inf")))


def _apply_typical_p(row: torch.Tensor, mass: float) -> None:
    """Keep the tokens whose information is nearest to the entropy (Meister et al., 2022)."""
    logprobs = row.log_softmax(-1)
    probabilities = logprobs.exp()
    entropy = -(logprobs * probabilities).nansum()
    distance, order = (-logprobs - entropy).abs().sort()
    cumulative = probabilities[order].cumsum(-1)
    last = int((cumulative < mass).sum().clamp_(max=len(row) - 1))
    row.masked_fill_((-logprobs - entropy).abs() > distance[last], float("-inf"))


def _inverse_cdf(logits: torch.Tensor, numbers: list[float]) -> list[int]:
    """Invert the cumulative distribution of each row of logits [rows, vocabulary].

    Works in two stages: select a piece of the vocabulary, then a token of the piece.
    """
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()
    if rest := -weights.shape[-1] % PIECE:
        weights = torch.nn.functional.pad(weights, (0, rest))
    pieces = weights.unflatten(-1, (-1, PIECE))
    ends = pieces.sum(-1).cumsum(-1, dtype=torch.float64)  # [rows, pieces]
    u = torch.tensor(numbers, device=logits.device, dtype=torch.float64)[:, None]
    threshold = torch.minimum(u * ends[:, -1:], ends[:, -1:] * BELOW_ONE)
    # Clamped for rows of NaN only, which have no meaningful token.
    piece = torch.searchsorted(ends, threshold, right=True).clamp_(max=ends.shape[-1] - 1)
    before = torch.where(piece > 0, ends.gather(-1, (piece - 1).clamp_(min=0)), 0.0)
    inside = pieces.gather(1, piece[..., None].expand(-1, 1, PIECE))[:, 0]
    inside = inside.cumsum(-1, dtype=torch.float64)
    # Strictly greater than the threshold, so that a token of probability 0 is never picked.
    threshold = torch.minimum(threshold - before, inside[:, -1:] * BELOW_ONE)
    offset = torch.searchsorted(inside, threshold, right=True)
    sampled: list[int] = (piece * PIECE + offset)[:, 0].clamp_(max=logits.shape[-1] - 1).tolist()
    return sampled


def rows_where(sequences: list[Sequence], wants: Callable[[SamplingParams], bool]) -> list[int]:
    """Return the rows whose parameters fulfil a condition."""
    return [row for row, sequence in enumerate(sequences) if wants(sequence.params)]
