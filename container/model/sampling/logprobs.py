"""Log-probabilities of sampled tokens, and of the tokens of a prompt."""

from dataclasses import dataclass

import torch

from container.engine.sequence import Sequence
from container.model.async_copy import AsyncHostCopy, take_rows, to_device
from container.model.kernels.cpu import Kernels, log_sum_exp


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Log-probabilities of prompt tokens, [rows], and the most likely at their places, [rows, top].

    `ids` and `values` are None if no request asks for the most likely tokens.
    """

    chosen: torch.Tensor
    ids: torch.Tensor | None = None
    values: torch.Tensor | None = None

    def on_host(self, host_copy: AsyncHostCopy) -> "PromptScores":
        """Begin a copy to the host, which may be read after `host_copy.wait`."""
        tensors = (self.chosen, self.ids, self.values)
        chosen, ids, values = (t if t is None else host_copy.add(t) for t in tensors)
        assert chosen is not None
        return PromptScores(chosen, ids, values)

    def tops(self) -> list[list[tuple[int, float]]]:
        """Return the most likely tokens of each row, the likeliest first."""
        if self.ids is None or self.values is None:
            return []
        rows = zip(self.ids.tolist(), self.values.tolist(), strict=True)
        return [list(zip(ids, values, strict=True)) for ids, values in rows]


def prompt_scores(
    logits: torch.Tensor, following: list[int], top: int, kernels: Kernels | None
) -> PromptScores:
    """Return the model's log-probability of the token that follows each row of logits.

    `top` is how many of the most likely tokens each row has as well.
    """
    ids = to_device(following, logits.device)
    totals = log_sum_exp(logits, kernels)
    chosen = logits.gather(-1, ids[:, None])[:, 0] - totals
    if not top:
        return PromptScores(chosen)
    best = logits.topk(min(top, logits.shape[-1]), -1)
    return PromptScores(chosen, best.indices, best.values - totals[:, None])


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
