"""Which decoder layers are checked, and which of them are held in the exact format together."""

from collections import defaultdict
from collections.abc import Hashable, Iterable

import torch
from torch import nn

from container.model.reference_check import EXACT_DTYPE

# Most checked layers of each variant, and of all: the first layers of all variants come first.
MAX_CHECKED, MAX_LAYERS = 3, 24
# Most bytes of converted weights that several layers hold at once.
MAX_HELD = 256 << 20


def choose_layers(layers: dict[str, Hashable]) -> list[str]:
    """Return the first, the middle and the last layer of each variant, in the model's order.

    Beyond MAX_LAYERS, the middle and last ones are left out, and then further variants.
    """
    names_by_variant: dict[Hashable, list[str]] = defaultdict(list)
    for name, variant in layers.items():
        names_by_variant[variant].append(name)
    wanted = [
        names[index * (len(names) - 1) // max(1, MAX_CHECKED - 1)]
        for index in range(MAX_CHECKED)
        for names in names_by_variant.values()
    ]
    chosen = list(dict.fromkeys(wanted))[:MAX_LAYERS]
    return [name for name in layers if name in chosen]


def group_layers(sizes: dict[str, int]) -> list[list[str]]:
    """Put layers of these bytes in groups, in order: of one layer, or of at most MAX_HELD."""
    groups: list[list[str]] = []
    held = 0
    for name, size in sizes.items():
        if not groups or held + size > MAX_HELD:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups


def exact_bytes(module: nn.Module, names: Iterable[str], dtype: torch.dtype) -> int:
    """Return the bytes of these layers' weights in the exact format of a model of `dtype`."""
    parameters = [weight for name in names for weight in module.get_submodule(name).parameters()]
    return sum(weight.numel() for weight in parameters) * EXACT_DTYPE[dtype].itemsize


def parent_of(name: str, layers: Iterable[str]) -> str | None:
    """Return the layer that a module of this name is in, or is; None if it is in none."""
    return next((layer for layer in layers if f"{name}.".startswith(f"{layer}.")), None)
