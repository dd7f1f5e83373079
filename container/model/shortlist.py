"""Drawing from the few tokens that top_k leaves, without touching the rest of the vocabulary.

The same rules as in container.model.sampler, and the same order: temperature, top_k, top_p, min_p,
then a number in [0, 1) that picks by inverse transform in the order of the ids. What a row gets
depends on its own logits and parameters only.
"""

from typing import Any

import numpy as np
import torch

from container.messages import LogprobMode, SamplingParams

# A longer list is not short any more: finding it costs as much as the whole vocabulary.
MAX_TOP_K = 512

Floats = np.ndarray[Any, np.dtype[np.float64]]


def is_short(params: SamplingParams) -> bool:
    """Whether a request's tokens can be drawn from a short list alone."""
    return (
        not params.is_greedy
        and 0 < params.top_k <= MAX_TOP_K
        and params.typical_p == 1.0
        and params.logprobs is not LogprobMode.PROCESSED
    )


def draw_short(
    logits: torch.Tensor, params: list[SamplingParams], numbers: list[float]
) -> list[int]:
    """Draw a token for each row of logits [rows, vocabulary], which stay as they are."""
    vocabulary = logits.shape[-1]
    most = min(vocabulary, max(one.top_k for one in params))
    best = logits.topk(most, -1).values
    last = torch.tensor([min(one.top_k, vocabulary) - 1 for one in params], device=logits.device)
    # What a grammar hides is on no list, even where it leaves fewer than k.
    worst = best.gather(-1, last[:, None]).clamp_(min=torch.finfo(logits.dtype).min)
    # Of tokens that are equally likely top_k keeps all.
    row, token_id = (logits >= worst).nonzero(as_tuple=True)
    values = logits[row, token_id].double().cpu().numpy()
    ids = token_id.cpu().numpy()
    ends = np.cumsum(np.bincount(row.cpu().numpy(), minlength=len(params)))
    lists = zip(np.split(values, ends[:-1]), np.split(ids, ends[:-1]), strict=True)
    return [
        int(found[_pick(list_values, one, number)])
        for (list_values, found), one, number in zip(lists, params, numbers, strict=True)
    ]


def _pick(values: Floats, params: SamplingParams, number: float) -> int:
    """The place in the list of the token that a number in [0, 1) picks."""
    values = (values - values.max()) / min(max(params.temperature, 1e-6), 1e6)
    weights = np.exp(values)
    if params.top_p < 1.0:
        weights = _keep_nucleus(weights, params.top_p)
    if params.min_p > 0.0:
        weights = np.where(weights >= params.min_p, weights, 0.0)  # the largest weight is 1
    cumulative = np.cumsum(weights)
    # Strictly greater, so that what was removed is never picked.
    place = np.searchsorted(cumulative, number * cumulative[-1], side="right")
    return int(min(place, len(values) - 1))


def _keep_nucleus(weights: Floats, mass: float) -> Floats:
    """Keep the fewest largest weights whose share reaches the mass; at least one."""
    ordered = np.sort(weights)[::-1]
    shares = np.cumsum(ordered) / ordered.sum()
    last = min(int((shares < mass).sum()), len(ordered) - 1)
    return np.where(weights >= ordered[last], weights, 0.0)
