"""Log-probabilities of sampled tokens, and of the tokens of a prompt."""

from dataclasses import dataclass

import torch

from container.engine.sequence import Sequence
from container.model.async_copy import take_rows, to_device
from container.model.kernels.cpu import Kernels, log_sum_exp


def token_logprobs(
    logits: torch.Tensor, following: list[int], kernels: Kernels | None
) -> torch.Tensor:
    """Return the model's log-probability of the token that follows each row of logits: [rows]."""
    ids = to_device(following, logits.device)
    chosen = logits.gather(-1, ids[:, None])[:, 0]
    return chosen - log_sum_exp(logits, kernels)


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """Log-probabilities of some rows, [rows], and their most likely tokens, [rows, most]."""

    rows: list[int]
    picked: torch.Tensor
    ids: torch.Tensor
    values: torch.Tensor


def row_logprobs(
    logprobs: torch.Tensor, rows: list[int], token_ids: torch.Tensor, sequences: list[Sequence]
) -> RowLogprobs:
    """Return the log-probabilities of each row's token and of the most likely tokens."""
    most = max(sequences[row].params.top_logprobs for row in rows)
    best = logprobs.topk(most, -1)
    picked = logprobs.gather(-1, take_rows(token_ids, rows)[:, None])[:, 0]
    return RowLogprobs(rows, picked, best.indices, best.values)
