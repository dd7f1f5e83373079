"""Encoder layers of the BERT family in few operations, for texts without padding.

BERT, RoBERTa, XLM-R, Electra and their relatives share one layer:

    x = norm(x + dense(attend(query(x), key(x), value(x))))
    x = norm(x + down(gelu(up(x))))

Here query, key and value are one product, and oneDNN adds the residual and computes the GELU
while it writes a product. Which layers may be replaced is not looked up in a list: a layer must
have these parts, and the whole model is compared with the library's own before it serves.
"""

import logging
from typing import Any

import torch
from torch import nn
from transformers.activations import GELUActivation

from container.model.packing import PackedLinear, joined_linear
from container.model.ragged import Span, attend_within

log = logging.getLogger(__name__)

LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")

# A layer with the module that holds it and its name there.
Place = tuple[nn.Module, str, nn.Module]


class LeanEncoderLayer(nn.Module):
    """One encoder layer; `layer` has the parts named above."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        query, key, value, dense, up, down = (_linear(layer, name) for name in LINEARS)
        attention: Any = layer.get_submodule("attention.self")
        self.head_dim: int = attention.attention_head_size
        self.qkv = joined_linear([query, key, value], PackedLinear)
        self.dense, self.up, self.down = (
            PackedLinear(one.weight, one.bias) for one in (dense, up, down)
        )
        self.norms = nn.ModuleList(layer.get_submodule(name) for name in NORMS)

    def forward(
        self, hidden_states: torch.Tensor, *_: object, spans: list[Span], **__: object
    ) -> torch.Tensor:
        """Compute [1, tokens, hidden] from the same."""
        rows = hidden_states[0]
        heads = self.qkv(rows).view(len(rows), 3, -1, self.head_dim)
        query, key, value = heads.permute(1, 2, 0, 3).unbind(0)
        seen = attend_within(spans, query, key, value, self.head_dim**-0.5)
        rows = self.norms[0](_sum(self.dense, seen.view(len(rows), -1), rows))
        return self.norms[1](_sum(self.down, _gelu(self.up, rows), rows))[None]


def replace_layers(model: nn.Module) -> list[Place]:
    """Replace the layers that have the family's parts, in place; return what was there."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if _has_parts(child)
    ]
    for parent, name, child in found:
        setattr(parent, name, LeanEncoderLayer(child))
    return found


def restore_layers(places: list[Place]) -> None:
    """Undo a replacement."""
    for parent, name, child in places:
        setattr(parent, name, child)


def _has_parts(layer: nn.Module) -> bool:
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


def _linear(layer: nn.Module, name: str) -> nn.Linear:
    found = layer.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


def _gelu(linear: PackedLinear, rows: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        rows, linear.packed, linear.bias, "gelu", [], "none"
    )
    return out


def _sum(linear: PackedLinear, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
        rows, other, linear.packed, linear.bias, "add"
    )
    return out
