"""Weights of tokens and their sums: the arithmetic below filters and sampling.

A row's token depends on the row alone: each piece of PIECE weights is summed by itself, and sums
over whole rows are in float64, where another order of the sum changes some 1e-16 of it.
"""

import torch

# Tokens per piece: weights are summed in the logits' type, and sampling selects a piece first.
PIECE = 256
HIDDEN = float("-inf")
_BELOW_ONE = 1 - 2**-52


def padded(logits: torch.Tensor) -> torch.Tensor:
    """Pad rows to whole pieces with hidden tokens; no copy if no padding is needed."""
    width = logits.shape[-1]
    rest = -width % PIECE if width > PIECE else 0
    return torch.nn.functional.pad(logits, (0, rest), value=HIDDEN) if rest else logits


def weights_of(logits: torch.Tensor) -> torch.Tensor:
    """Exponentiate logits [rows, vocabulary] to weights [rows, padded], the largest being 1."""
    return (padded(logits) - logits.amax(-1, keepdim=True)).exp_()


def in_pieces(weights: torch.Tensor) -> torch.Tensor:
    """View [rows, padded] as [rows, pieces, tokens]; a narrow row is one piece."""
    return weights.unflatten(-1, (-1, min(PIECE, weights.shape[-1])))


def total(weights: torch.Tensor) -> torch.Tensor:
    """Sum weights [rows, padded]: float64 [rows, 1]."""
    return in_pieces(weights).sum(-1).sum(-1, keepdim=True, dtype=torch.float64)


def inverse_cdf(logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution of each row of logits [rows, vocabulary]: int64 [rows].

    `numbers` are float64 [rows], in [0, 1). Works in two stages: select a piece of the vocabulary,
    then a token of the piece.
    """
    pieces = in_pieces(weights_of(logits))
    sums = pieces.sum(-1)
    target = numbers[:, None] * sums.sum(-1, keepdim=True, dtype=torch.float64)
    size = pieces.shape[-1]
    if len(pieces[0]) == 1:
        return _locate(pieces[:, 0], target)[0][:, 0]
    piece, target = _locate(sums, target)
    inside = pieces.gather(1, piece[..., None].expand(-1, 1, size))[:, 0]
    offset, _ = _locate(inside, target)
    return (piece * size + offset)[:, 0].clamp_(max=logits.shape[-1] - 1)


def _locate(weights: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the first of [rows, width] up to which the weights sum to more than the target.

    Returns its index, int64 [rows, 1], and the target less the sum before it, float64 [rows, 1].
    """
    ends = weights.cumsum(-1, dtype=torch.float64)
    # Strictly less than the sum, so that a token of probability 0 is never picked.
    target = torch.minimum(target, ends[:, -1:] * _BELOW_ONE)
    # Clamped for rows of NaN only, which have no meaningful token.
    index = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[-1] - 1)
    # Not `where`: torch could copy its Python scalar to the device, and wait.
    before = ends.gather(-1, (index - 1).clamp_(min=0)).masked_fill_(index == 0, 0.0)
    return index, target - before
