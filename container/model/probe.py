"""The probe: a few ids that a model runs on at start, and how near two results must be."""

import logging

import torch
from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

IDS = (5, 7, 11, 13, 17, 19, 23, 29)  # any ids will do
# Of these the first half is a prompt; the others come token by token.
PROMPT_LEN = len(IDS) // 2
# How far logits may be off, as a share of the largest: float32 only by rounding, half-precision
# formats by what the order of their sums makes.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}

# Weights of eight bits are no longer the model's own, and a cache of eight bits forgets more still;
# what is simply wrong is off by about the whole scale.
ROUGH_WEIGHTS, ROUGH_CACHE = 0.2, 0.4


class Differs(Exception):
    """A model does not compute the same in two ways."""


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """What tells of the language model; models with other parts have it on a level of its own."""
    return getattr(config, "text_config", None) or config


def ids_for(module: PreTrainedModel) -> list[int]:
    """The probe within a model's vocabulary."""
    return [token_id % text_config(module.config).vocab_size for token_id in IDS]


def check_same(
    got: torch.Tensor,
    expected: torch.Tensor,
    dtype: torch.dtype,
    what: str,
    *,
    limit: float | None = None,
) -> None:
    """Compare logits [rows, vocabulary], to TOLERANCE or this limit. Raises Differs."""
    scale = expected.abs().max().item()
    error = (got - expected).abs().max().item() / max(scale, 1e-6)
    limit = TOLERANCE[dtype] if limit is None else limit
    log.info("%s checked against the model's own pass: off by %.2g of the scale", what, error)
    if not error <= limit:
        raise Differs(
            f"{what} differs from the model's own forward pass by {error:.2g} (limit {limit})"
        )
