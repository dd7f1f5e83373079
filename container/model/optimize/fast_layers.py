"""Replaces a model's layers and linear layers by the fastest forms that stay accurate."""

import functools

import torch
from transformers import PreTrainedModel

from container.model.attention.metadata import AttentionParams
from container.model.checks.layer_trial import LayerTrial
from container.model.fallbacks import TRY_ANOTHER_DTYPE
from container.model.layers.cpu_linear import LinearFactory
from container.model.layers.int8_linear import BatchPhase
from container.model.layers.linear import MakeLinear, PlainLinear
from container.model.optimize.fusing import fuse_decoder_layers
from container.model.optimize.packing import pack

# How to make the layers' linear layers, how to make the output layer, and whether with fewer bits.
Chosen = tuple[MakeLinear, MakeLinear, bool]


def choose_linears(
    phase: BatchPhase | None, linears: LinearFactory, *, int4_weights: bool
) -> Chosen:
    """Choose the layers' linear layers, and the output layer, which has no phase.

    The output layer has eight bits at least: four would change the choice between likely tokens.
    """
    head = functools.partial(linears.int8, phase=None, fp32_out=True)
    if int4_weights:
        return linears.int4, head, True
    if phase is None:
        return linears.linear, linears.head, False
    return functools.partial(linears.int8, phase=phase), head, True


def replace_layers(
    module: PreTrainedModel,
    trial: LayerTrial,
    layer_attn_params: list[AttentionParams],
    dtype: torch.dtype,
    linears: LinearFactory,
    chosen: Chosen,
    *,
    keeps_layers: bool,
) -> None:
    """Replace layers and linear layers by faster forms, and by the chosen ones of fewer bits.

    `keeps_layers` leaves decoder layers unchanged, because they are compiled, or because
    accelerate loads their weights from the disk or another device for each call.
    """
    make, make_head, is_quantized = chosen
    packs = is_quantized
    if keeps_layers:
        pass
    elif module.device.type != "cpu":
        plain = make if is_quantized else PlainLinear
        fuse_decoder_layers(module, layer_attn_params, trial, plain, PlainLinear, None)
    elif linears.packs(dtype):
        fuse_decoder_layers(module, layer_attn_params, trial, make, linears.linear, linears.kernels)
        packs = True
    elif linears.uses_kernels(dtype):
        trial.fallbacks.add(
            "packed linear layers",
            "a trial of one failed, so layers and products run in PyTorch's operations",
            TRY_ANOTHER_DTYPE,
        )
    if packs:
        pack(module, make, make_head, kernels=linears.kernels)
