"""Random logits and parameters, and the device's choice for them."""

from typing import Any

import numpy as np
import torch

from container.messages.engine import SamplingParams
from container.model.sampling.device import choose_on_device

HIDDEN = -torch.inf


def sampling_params(**values: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=1, **values)


def random_logits(seed: int, rows: int, vocabulary: int, *, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * scale


def choose(
    logits: torch.Tensor, params: list[SamplingParams], numbers: list[float]
) -> tuple[list[int], torch.Tensor]:
    """Tokens and the logits as they are left."""
    logits = logits.clone()
    return choose_on_device(logits, params, numbers).tolist(), logits


def mixed_params(seed: int, count: int) -> list[SamplingParams]:
    """Parameters of every kind, at random."""
    rnd = np.random.default_rng(seed)

    def one_of(*values: float) -> Any:
        return values[rnd.integers(len(values))]

    return [
        sampling_params(
            seed=int(rnd.integers(10_000)),
            temperature=one_of(0.0, 0.3, 0.7, 1.0, 1.0, 4.0),
            top_k=one_of(0, 0, 1, 5, 40, 300, 1024, 1025, 1500, 10_000),
            top_p=one_of(1.0, 1.0, 0.95, 0.9, 0.3, 0.01),
            typical_p=one_of(1.0, 1.0, 1.0, 0.9, 0.5, 0.05),
            min_p=one_of(0.0, 0.0, 0.05, 0.5, 1.0),
        )
        for _ in range(count)
    ]


LIMITS: list[dict[str, float]] = [
    {},
    {"top_k": 5},
    {"top_k": 1200},
    {"top_p": 0.5},
    {"top_k": 5, "top_p": 0.5},
    {"typical_p": 0.5},
    {"min_p": 0.2},
]
