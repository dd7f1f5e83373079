"""Encoder layers of the BERT family in few operations, for texts without padding.

BERT, RoBERTa, XLM-R, Electra and their relatives share one layer:

    x = norm(x + dense(attend(query(x), key(x), value(x))))
    x = norm(x + down(gelu(up(x))))

Where the CPU kernels support them, all layers are one call (cpu_encoder.py). Elsewhere query, key
and value are one GEMM, and oneDNN fuses the residual and the GELU into its GEMMs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.activations import GELUActivation

from container.model.attention.unpadded import Span, attend_within
from container.model.layers.linear import PackedLinear, merged_linear

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
    """The modules of a layer; see the formula above."""

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
        """Return the modules of a layer that `has_parts`."""
        modules: dict[str, Any] = dict(layer.named_modules())
        query, key, value, dense, up, down = (modules[name] for name in LINEARS)
        first, second = (modules[name] for name in NORMS)
        head_dim: int = modules["attention.self"].attention_head_size
        return cls(head_dim, query, key, value, dense, up, down, (first, second))

    @property
    def weights(self) -> list[torch.Tensor]:
        """The weights of its linear layers."""
        linears = self.query, self.key, self.value, self.dense, self.up, self.down
        return [linear.weight for linear in linears]


def has_parts(layer: nn.Module) -> bool:
    """Whether a layer has exactly the family's modules, with classes that are supported."""
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


class FusedEncoderLayer(nn.Module):
    """One encoder layer, in PyTorch and oneDNN operations."""

    def __init__(self, parts: EncoderParts) -> None:
        super().__init__()
        self.head_dim = parts.head_dim
        self.qkv = merged_linear([parts.query, parts.key, parts.value], PackedLinear)
        self.dense, self.up, self.down = (
            PackedLinear(linear.weight, linear.bias)
            for linear in (parts.dense, parts.up, parts.down)
        )
        self.norms = nn.ModuleList(parts.norms)

    def forward(
        self, hidden_states: torch.Tensor, *_: object, spans: list[Span], **__: object
    ) -> torch.Tensor:
        """Run the layer on [1, tokens, hidden]; returns the same shape."""
        rows = hidden_states[0]
        heads = self.qkv(rows).view(len(rows), 3, -1, self.head_dim)
        query, key, value = heads.permute(1, 2, 0, 3).unbind(0)
        attn_out = attend_within(spans, query, key, value, self.head_dim**-0.5)
        rows = self.norms[0](_sum(self.dense, attn_out.view(len(rows), -1), rows))
        return self.norms[1](_sum(self.down, _gelu(self.up, rows), rows))[None]


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
