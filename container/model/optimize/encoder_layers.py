"""Replaces encoder layers of the BERT family by fused ones."""

from torch import nn

from container.model.kernels.cpu import Kernels
from container.model.layers.cpu_encoder import EncoderStack, fits_cpu_encoder
from container.model.layers.encoder_layer import EncoderParts, FusedEncoderLayer, has_parts
from container.model.layers.linear import (
    can_pack,
)

# A replaced list of layers: its parent module, its name there, and the list.
ReplacedLayers = tuple[nn.Module, str, nn.Module]


def replace_layers(model: nn.Module, kernels: Kernels | None) -> list[ReplacedLayers]:
    """Replace lists of layers that have the family's parts, in place; return the old lists."""
    replaced: list[ReplacedLayers] = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ModuleList) and len(child) and all(map(has_parts, child)):
                parts = [EncoderParts.of(layer) for layer in child]
                if replacements := _replacements(parts, kernels):
                    replaced.append((parent, name, child))
                    setattr(parent, name, nn.ModuleList(replacements))
    return replaced


def _replacements(parts: list[EncoderParts], kernels: Kernels | None) -> list[nn.Module]:
    if kernels is not None and fits_cpu_encoder(kernels, parts):
        return [EncoderStack(parts, kernels)]
    if not can_pack(parts[0].query.weight.dtype):
        return []
    return [FusedEncoderLayer(layer_parts) for layer_parts in parts]


def restore_layers(replaced: list[ReplacedLayers]) -> None:
    """Undo a replacement."""
    for parent, name, child in replaced:
        setattr(parent, name, child)
