"""Replaces linear layers and norms by packed, merged and fused ones."""

import logging

import torch
from torch import nn
from transformers import PreTrainedModel

from container.model.kernels.cpu import Kernels
from container.model.layers.linear import (
    MakeLinear,
    MergedLinear,
    MergedLinearView,
    merged_linear,
)
from container.model.layers.rms_norm import FusedRMSNorm, is_plain_rms_norm, norm_eps

log = logging.getLogger(__name__)

MERGED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


def name_linears(model: nn.Module) -> None:
    """Set each linear layer's name on it, since packed layers no longer have one."""
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            module.qualified_name = name


@torch.inference_mode()
def pack(
    model: nn.Module,
    make: MakeLinear,
    make_head: MakeLinear | None = None,
    *,
    kernels: Kernels | None = None,
) -> None:
    """Replace linear layers and norms by faster forms, in place; `make_head` makes the output's."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    merged = norms = linears = 0
    for module in list(model.modules()):
        for names in MERGED:
            merged += _merge(module, names, make)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                chosen = make_head if make_head is not None and child is head else make
                setattr(module, name, merged_linear([child], chosen))
                linears += 1
            elif is_plain_rms_norm(child):
                weight = child.get_parameter("weight")
                setattr(module, name, FusedRMSNorm(weight, norm_eps(child), kernels))
                norms += 1
    log.debug("packed %d linear layers, joined %d, fused %d norms", linears, merged, norms)


def _merge(module: nn.Module, names: tuple[str, ...], make: MakeLinear) -> int:
    linears = [getattr(module, name, None) for name in names]
    if not all(type(linear) is nn.Linear for linear in linears):
        return 0
    known: list[nn.Linear] = [linear for linear in linears if isinstance(linear, nn.Linear)]
    first = known[0]
    if any(
        linear.in_features != first.in_features or (linear.bias is None) != (first.bias is None)
        for linear in known
    ):
        return 0
    merged = MergedLinear(known, make)
    for index, name in enumerate(names):
        setattr(module, name, MergedLinearView(merged, index))
    return 1
