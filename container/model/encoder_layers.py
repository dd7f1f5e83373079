"""Encoder layers of the BERT family in few operations, for texts without padding.

BERT, RoBERTa, XLM-R, Electra and their relatives share one layer:

    x = norm(x + dense(attend(query(x), key(x), value(x))))
    x = norm(x + down(gelu(up(x))))

Where the kernels can, all layers are one call (encoder_stack.py). Elsewhere query, key and value
are one product, and oneDNN adds the residual and computes the GELU while it writes a product.
"""

import logging

import torch
from torch import nn

from container.model.encoder_parts import EncoderParts, has_parts
from container.model.encoder_stack import EncoderStack, fits
from container.model.kernels import find_kernels
from container.model.packing import PackedLinear, joined_linear
from container.model.ragged import Span, attend_within

log = logging.getLogger(__name__)

# A list of layers with the module that holds it and its name there.
Place = tuple[nn.Module, str, nn.Module]


class LeanEncoderLayer(nn.Module):
    """One encoder layer, in torch's and oneDNN's operations."""

    def __init__(self, parts: EncoderParts) -> None:
        super().__init__()
        self.head_dim = parts.head_dim
        self.qkv = joined_linear([parts.query, parts.key, parts.value], PackedLinear)
        self.dense, self.up, self.down = (
            PackedLinear(one.weight, one.bias) for one in (parts.dense, parts.up, parts.down)
        )
        self.norms = nn.ModuleList(parts.norms)

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
    """Replace lists of layers that have the family's parts, in place; return what was there."""
    found: list[Place] = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ModuleList) and len(child) and all(map(has_parts, child)):
                found.append((parent, name, child))
                parts = [EncoderParts.of(layer) for layer in child]
                setattr(parent, name, nn.ModuleList(_replacements(parts)))
    return found


def _replacements(parts: list[EncoderParts]) -> list[nn.Module]:
    kernels = find_kernels()
    if kernels is not None and fits(kernels, parts):
        return [EncoderStack(parts, kernels)]
    return [LeanEncoderLayer(one) for one in parts]


def restore_layers(places: list[Place]) -> None:
    """Undo a replacement."""
    for parent, name, child in places:
        setattr(parent, name, child)


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
