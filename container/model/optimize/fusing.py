"""Replaces decoder layers of the Llama family by fused ones, where they stay as accurate.

There is no list of supported models: a form is used if its results on the same input are the same.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from container.errors import one_line
from container.model.attention.metadata import AttentionParams
from container.model.checks.layer_trial import LayerTrial
from container.model.fallbacks import TRY_ANOTHER_DTYPE, Fallbacks
from container.model.kernels.cpu import Kernels
from container.model.layers.cpu_layer_ops import CpuLayerOps, fits_cpu_kernels
from container.model.layers.decoder_layer import FusedDecoderLayer
from container.model.layers.layer_ops import LayerOps, LayerSpec
from container.model.layers.linear import (
    MakeLinear,
)
from container.model.layers.rms_norm import is_plain_rms_norm

log = logging.getLogger(__name__)

LAYER_NORMS = {"input_layernorm", "post_attention_layernorm"}
LAYER_PARTS = LAYER_NORMS | {"self_attn", "mlp"}
ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
MakeOps = Callable[[LayerSpec], LayerOps]
REMEDY = f"{TRY_ANOTHER_DTYPE}; if a compiler is missing, install it"
REPORT = "no setting changes this; please report the model and this line"


class _NotFusable(Exception):
    """Layers with the family's parts have no fused form; the message is the reason."""


def find_decoder_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that have the family's parts, by name."""
    return {name: module for name, module in model.named_modules() if _has_parts(module)}


@torch.inference_mode()
def fuse_decoder_layers(
    model: nn.Module,
    layer_attn_params: list[AttentionParams],
    trial: LayerTrial,
    make: MakeLinear,
    make_exact: MakeLinear,
    kernels: Kernels | None,
) -> None:
    """Replace layers in place, variant by variant, where the checked ones stay as accurate.

    `layer_attn_params` are the arguments of each layer's attention. `make_exact` makes unquantized
    linear layers, for the comparison.
    """
    names_by_variant: dict[Hashable, list[str]] = defaultdict(list)
    for name in find_decoder_layers(model):
        names_by_variant[trial.variants.get(name)].append(name)
    for variant, names in names_by_variant.items():
        checked = [name for name in names if name in trial.checked]
        if variant is not None and not checked:
            reason = f"disabled for {len(names)} layers, since none of their kind was checked"
            trial.fallbacks.add("fused layers", reason, "`not_proved` of /info says more")
        try:
            make_ops = _choose_ops(model, checked, layer_attn_params, trial, make_exact, kernels)
        except _NotFusable as error:
            reason = f"disabled for {len(names)} layers, since they cannot be built: {error}"
            trial.fallbacks.add("fused layers", reason, REPORT)
            continue
        if make_ops is None:
            continue
        for name in names:
            layer = model.get_submodule(name)
            if not isinstance(layer, FusedDecoderLayer):
                _replace(model, name, _fuse(layer, layer_attn_params, make, make_ops))
        log.debug("replaced %d decoder layers", len(names))


def _choose_ops(
    model: nn.Module,
    names: list[str],
    layer_attn_params: list[AttentionParams],
    trial: LayerTrial,
    make: MakeLinear,
    kernels: Kernels | None,
) -> MakeOps | None:
    """Choose the fastest accurate ops between the GEMMs of these layers; None if there are none.

    The model's layers are unchanged afterwards. Raises _NotFusable.
    """
    layers = {name: model.get_submodule(name) for name in names}
    try:
        fused_layers = {
            name: FusedDecoderLayer.of(layer, layer_attn_params, make)
            for name, layer in layers.items()
        }
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise _NotFusable(one_line(error)) from error
    try:
        for name, fused in fused_layers.items():
            _replace(model, name, fused)
        spec = fused_layers[names[0]].spec if names else None
        for make_ops in () if spec is None else _ops_choices(spec, kernels, trial.fallbacks):
            if _are_layers_accurate(fused_layers, make_ops, trial):
                return make_ops
    finally:
        for name, layer in layers.items():
            _replace(model, name, layer)
    return None


def _are_layers_accurate(
    fused_layers: dict[str, FusedDecoderLayer], make_ops: MakeOps, trial: LayerTrial
) -> bool:
    try:
        for fused in fused_layers.values():
            fused.ops = make_ops(fused.spec)
        accuracy = trial.measure(list(fused_layers))
        reason = None if accuracy.is_accepted else f"they are off by {accuracy}"
    except Exception as error:  # compilers and drivers raise many types
        reason = f"their check failed: {one_line(error)}"
    if reason is not None:
        ops = type(next(iter(fused_layers.values())).ops).__name__
        trial.fallbacks.add(f"fused layers with {ops}", f"disabled, since {reason}", REMEDY)
    return reason is None


def _ops_choices(
    spec: LayerSpec, kernels: Kernels | None, fallbacks: Fallbacks
) -> Iterator[MakeOps]:
    """Yield the ops that may lie between a layer's GEMMs, the fastest first."""
    if kernels is not None and fits_cpu_kernels(spec):
        yield partial(CpuLayerOps, kernels=kernels)
    if spec.norms[0][0].is_cuda and (triton_ops := _triton_ops(spec, fallbacks)) is not None:
        yield triton_ops
    yield LayerOps


def _triton_ops(spec: LayerSpec, fallbacks: Fallbacks) -> MakeOps | None:
    """Return Triton's ops, if they support the layer and Triton can be imported."""
    try:
        from container.model.layers import triton_layer_ops
    except Exception as error:  # no such package, or one without its driver's libraries
        fallbacks.add(
            "fused layers",
            f"Triton cannot be imported ({one_line(error)}), so PyTorch's operations serve",
            "install Triton, or use the image for GPUs, which contains it",
        )
        return None
    return triton_layer_ops.TritonLayerOps if triton_layer_ops.fits_triton(spec) else None


def _fuse(
    layer: nn.Module, layer_attn_params: list[AttentionParams], make: MakeLinear, make_ops: MakeOps
) -> FusedDecoderLayer:
    fused = FusedDecoderLayer.of(layer, layer_attn_params, make)
    fused.ops = make_ops(fused.spec)
    return fused


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)


def _has_parts(module: nn.Module) -> bool:
    if {name for name, _ in module.named_children()} != LAYER_PARTS:
        return False
    paged: Any = module.self_attn
    mlp: Any = module.mlp
    parts = {name for name, _ in paged.named_children()}
    if parts - HEAD_NORMS != ATTENTION_PARTS or parts & HEAD_NORMS not in (set(), HEAD_NORMS):
        return False
    if {name for name, _ in mlp.named_children()} != MLP_PARTS:
        return False
    linears = [paged.get_submodule(name) for name in ATTENTION_PARTS]
    linears += [mlp.get_submodule(name) for name in MLP_PARTS - {"act_fn"}]
    norms = [module.get_submodule(name) for name in LAYER_NORMS]
    norms += [paged.get_submodule(name) for name in parts & HEAD_NORMS]
    are_plain = all(type(linear) is nn.Linear for linear in linears)
    return are_plain and all(map(is_plain_rms_norm, norms))
