"""The rules of sampling in float64, one row at a time."""

import numpy as np
import torch

from container.messages.engine import SamplingParams
from container.model.sampling.rng import divisor

# Nearer to a limit than this, float32 may decide either way.
ROUNDING = 1e-5


class Reference:
    """The rules for one row, one after the other in float64.

    `margin` is how far the row is from any limit at which rounding could decide otherwise.
    """

    def __init__(self, row: torch.Tensor, params: SamplingParams, number: float) -> None:
        self.margin = 1.0
        self.logits = (row / divisor(params)).double().numpy()
        self.kept = np.isfinite(self.logits)
        if 0 < params.top_k < len(row):
            self.kept &= self.logits >= np.sort(self.logits)[-params.top_k]
        if params.top_p < 1.0:
            self._keep(-self.logits, params.top_p)
        if params.typical_p < 1.0:
            logprobs = self._log_probabilities()
            entropy = -(np.exp(logprobs[self.kept]) * logprobs[self.kept]).sum()
            self._keep(np.abs(logprobs + entropy), params.typical_p)
        if params.min_p > 0.0:
            distance = self.logits - self.logits[self.kept].max() - np.log(params.min_p)
            # A distance of exactly 0 is that of the most likely token from itself (min_p is 1).
            self._near(np.abs(distance[self.kept & (distance != 0)]))
            self.kept &= distance >= 0
        ends = self._probabilities().cumsum()
        self._near(np.abs(ends[:-1] - number))
        self.token_id = int(np.searchsorted(ends, number * ends[-1], side="right"))

    def _log_probabilities(self) -> np.ndarray:
        kept = self.logits[self.kept]
        return self.logits - kept.max() - np.log(np.exp(kept - kept.max()).sum())

    def _probabilities(self) -> np.ndarray:
        return np.where(self.kept, np.exp(np.minimum(self._log_probabilities(), 0.0)), 0.0)

    def _keep(self, order: np.ndarray, mass: float) -> None:
        """Keep those first in an order until the mass is reached; equal ones together."""
        probabilities = self._probabilities()
        places, group = np.unique(order[self.kept], return_inverse=True)
        reached = np.bincount(group, probabilities[self.kept]).cumsum()
        last = min(int((reached < mass).sum()), len(places) - 1)
        self._near(np.abs(reached - mass))
        gaps = np.diff(places) / np.maximum(np.abs(places[1:]), 1.0)
        self._near(gaps[max(last - 1, 0) : last + 1])
        self.kept &= order <= places[last]

    def _near(self, distances: np.ndarray) -> None:
        self.margin = min(self.margin, float(distances.min(initial=1.0)))
