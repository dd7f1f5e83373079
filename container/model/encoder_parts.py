"""The parts of an encoder layer of the BERT family (BERT, RoBERTa, XLM-R, Electra, ...).

Which layers are of the family is not looked up in a list: a layer must have these parts, and the
whole model is compared with the library's own before it serves.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.activations import GELUActivation

LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")


@dataclass(frozen=True, slots=True)
class EncoderParts:
    """What a layer computes with: x = norm(x + dense(attend(q, k, v))), then norm(x + down(up))."""

    head_dim: int
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    dense: nn.Linear
    up: nn.Linear
    down: nn.Linear
    norms: tuple[nn.LayerNorm, nn.LayerNorm]

    @classmethod
    def of(cls, layer: nn.Module) -> "EncoderParts":
        """Take a layer that `has_parts` apart."""
        modules: dict[str, Any] = dict(layer.named_modules())
        query, key, value, dense, up, down = (modules[name] for name in LINEARS)
        first, second = (modules[name] for name in NORMS)
        head_dim: int = modules["attention.self"].attention_head_size
        return cls(head_dim, query, key, value, dense, up, down, (first, second))

    @property
    def weights(self) -> list[torch.Tensor]:
        """Those of its products."""
        products = self.query, self.key, self.value, self.dense, self.up, self.down
        return [one.weight for one in products]


def has_parts(layer: nn.Module) -> bool:
    """Whether a layer has the family's parts, of the usual kinds, and nothing else that counts."""
    modules = dict(layer.named_modules())
    act = modules.get("intermediate.intermediate_act_fn")
    return (
        all(type(modules.get(name)) is nn.Linear for name in LINEARS)
        and all(type(modules.get(name)) is nn.LayerNorm for name in NORMS)
        and "crossattention" not in modules
        and isinstance(act, GELUActivation | nn.GELU)
        and getattr(act, "approximate", "none") == "none"
        and not getattr(modules.get("attention.self"), "is_causal", False)
    )
