"""Drawing from the few tokens that top_k or top_p leave, without touching the whole vocabulary.

The same rules as in container.model.sampler, and the same order: temperature, top_k, top_p, min_p,
then a number in [0, 1) that picks by inverse transform in the order of the ids. What a row gets
depends on its own logits and parameters only.
"""

from typing import Any

import numpy as np
import torch

from container.messages import LogprobMode, SamplingParams
from container.model.transfer import to_device

# A longer list is not short any more: finding it costs as much as the whole vocabulary.
MAX_TOP_K = 512
# Without top_k, as many tokens are looked at; where top_p wants more, there is no list.
PROBE = 64

Floats = np.ndarray[Any, np.dtype[np.float64]]


def may_be_short(params: SamplingParams) -> bool:
    """Whether a request's tokens can perhaps be drawn from a short list alone."""
    is_limited = 0 < params.top_k <= MAX_TOP_K or (params.top_k == 0 and params.top_p < 1.0)
    return (
        not params.is_greedy
        and is_limited
        and params.typical_p == 1.0
        and params.logprobs is not LogprobMode.PROCESSED
    )


def divisor(params: SamplingParams) -> float:
    """The temperature within bounds: beyond them the quotient could overflow, and nothing else."""
    return min(max(params.temperature, 1e-6), 1e6)


def draw_short(
    logits: torch.Tensor, params: list[SamplingParams], numbers: list[float]
) -> list[int | None]:
    """Draw a token for each row of logits [rows, vocabulary], which stay as they are.

    None for a row whose list would not be short, or that has nothing to draw from.
    """
    vocabulary = logits.shape[-1]
    lengths = [min(one.top_k or PROBE, vocabulary) for one in params]
    best = largest(logits, max(lengths))
    last = torch.tensor(lengths, device=logits.device)[:, None] - 1
    # What a grammar hides is on no list, even where it leaves fewer than k.
    worst = best.gather(-1, last).clamp_(min=torch.finfo(logits.dtype).min)
    # Of tokens that are equally likely top_k keeps all.
    row, token_id = (logits >= worst).nonzero(as_tuple=True)
    values = logits[row, token_id].double().cpu().numpy()
    ids = token_id.cpu().numpy()
    cuts = np.cumsum(np.bincount(row.cpu().numpy(), minlength=len(params)))[:-1]
    lists = zip(np.split(values, cuts), np.split(ids, cuts), strict=True)
    totals = _totals(logits, params)
    drawn: list[int | None] = []
    for (found, of), one, number, total in zip(lists, params, numbers, totals, strict=True):
        place = _pick(found, one, number, total)
        drawn.append(None if place is None else int(of[place]))
    return drawn


def take_rows(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Some rows, in ascending order; all of them are the same tensor, not a copy."""
    if len(rows) == len(logits):
        return logits
    return logits.index_select(0, to_device(rows, logits.device, torch.int64))


def largest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The largest logits of each row, in order: [rows, count]."""
    if logits.device.type != "cpu":
        return logits.topk(count, -1).values
    # numpy sorts with vector instructions: 30 times as fast as torch (docs/LOG.md).
    first = logits.shape[-1] - count
    best = np.partition(logits.numpy(), first, -1)[:, first:] if first else logits.numpy()
    return torch.from_numpy(np.sort(best, -1)[:, ::-1].copy())


def _totals(logits: torch.Tensor, params: list[SamplingParams]) -> list[float | None]:
    """The sum of all weights of the rows without top_k, the largest weight being 1."""
    totals: list[float | None] = [None] * len(params)
    rows = [row for row, one in enumerate(params) if not one.top_k]
    if rows:
        selected = take_rows(logits, rows)
        divisors = torch.tensor([divisor(params[row]) for row in rows], device=logits.device)
        scaled = (selected - selected.amax(-1, keepdim=True)).div_(divisors[:, None])
        for row, total in zip(rows, scaled.exp_().sum(-1).tolist(), strict=True):
            totals[row] = total
    return totals


def _pick(values: Floats, params: SamplingParams, number: float, total: float | None) -> int | None:
    """The place in the list of the token that a number in [0, 1) picks."""
    if not len(values) or not np.isfinite(values.max()):
        return None
    weights = np.exp((values - values.max()) / divisor(params))
    if params.top_p < 1.0:
        ordered = np.sort(weights)[::-1]
        reached = np.cumsum(ordered) / (ordered.sum() if total is None else total)
        if total is not None and reached[-1] < params.top_p:
            return None
        # The first token at which the mass is reached is the last one kept.
        kept = min(int((reached < params.top_p).sum()), len(ordered) - 1)
        weights = np.where(weights >= ordered[kept], weights, 0.0)
    if params.min_p > 0.0:
        weights = np.where(weights >= params.min_p, weights, 0.0)  # the largest weight is 1
    cumulative = np.cumsum(weights)
    # Strictly greater, so that what was removed is never picked.
    place = np.searchsorted(cumulative, number * cumulative[-1], side="right")
    return int(min(place, len(values) - 1))
