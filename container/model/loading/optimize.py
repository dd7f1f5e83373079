"""Replaces modules of a model by faster forms, each checked before it serves.

There is no list of supported models: a form is used if its results on the same input are the same.
"""

import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from container.errors import ConfigError, one_line
from container.model.attention import paged
from container.model.attention.metadata import AttentionParams
from container.model.hf_config import text_config
from container.model.kernels.cpu import LANES, Kernels
from container.model.layers.cpu_decoder import DecoderStack, cpu_linears
from container.model.layers.cpu_encoder import EncoderStack, fits_cpu_encoder
from container.model.layers.cpu_layer_ops import CpuLayerOps, fits_cpu_kernels
from container.model.layers.cpu_linear import CpuLinear
from container.model.layers.decoder_layer import FusedDecoderLayer
from container.model.layers.encoder_layer import EncoderParts, FusedEncoderLayer, has_parts
from container.model.layers.layer_ops import LayerOps, LayerSpec
from container.model.layers.linear import (
    MakeLinear,
    MergedLinear,
    MergedLinearView,
    can_pack,
    merged_linear,
)
from container.model.layers.rms_norm import FusedRMSNorm, is_plain_rms_norm, norm_eps
from container.model.reference_check import LayerTrial

log = logging.getLogger(__name__)

COMPILERS = ("c++", "g++", "clang++")
# A replaced list of layers: its parent module, its name there, and the list.
ReplacedLayers = tuple[nn.Module, str, nn.Module]
LAYER_NORMS = {"input_layernorm", "post_attention_layernorm"}
LAYER_PARTS = LAYER_NORMS | {"self_attn", "mlp"}
ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
MakeOps = Callable[[LayerSpec], LayerOps]
MERGED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


def compile_layers(module: PreTrainedModel, run: Callable[[], object]) -> None:
    """Compile the layers; `run` calls the model once. Raises ConfigError if that fails."""
    count = text_config(module.config).num_hidden_layers
    lists = [
        module_list for module_list in module.modules() if isinstance(module_list, nn.ModuleList)
    ]
    layers = [layer for module_list in lists if len(module_list) == count for layer in module_list]
    if not layers:
        raise ConfigError(["COMPILE=1 cannot work here: no list of decoder layers was found"])
    if module.device.type == "cpu" and not any(map(shutil.which, COMPILERS)):
        raise ConfigError(["COMPILE=1 needs a C++ compiler on a CPU, and there is none"])
    outside = torch.compiler.disable(paged.paged_attention)
    ALL_ATTENTION_FUNCTIONS.register(paged.NAME, outside)
    log.info("compiling %d decoder layers; the first time takes minutes", len(layers))
    try:
        for layer in layers:
            layer.compile(dynamic=True)
        run()
    except Exception as error:  # from the compiler or the compiled code
        raise ConfigError([f"COMPILE=1 cannot work here: {one_line(error)}"]) from error


@torch.inference_mode()
def stack_layers(
    model: nn.Module, run: Callable[[], object], trial: LayerTrial, kernels: Kernels | None
) -> None:
    """Stack a model's layers, in place, if the kernels support all of them.

    `run` calls the model; each layer must read the output of the one before it. The checked layers
    must stay as accurate, each as a stack of one layer.
    """
    for name, child in list(model.named_modules()):
        layers = list(child) if isinstance(child, nn.ModuleList) else []
        fused = [layer for layer in layers if isinstance(layer, FusedDecoderLayer)]
        if kernels is None or not fused or len(fused) != len(layers):
            continue
        if (
            _can_stack(fused)
            and _is_chain(fused, run)
            and _is_stack_accurate(child, name, kernels, trial)
        ):
            model.set_submodule(name, nn.ModuleList([DecoderStack(fused, kernels)]))


def _is_stack_accurate(
    layers: nn.ModuleList, name: str, kernels: Kernels, trial: LayerTrial
) -> bool:
    for index, layer in enumerate(layers):
        if f"{name}.{index}" not in trial.checked:
            continue
        assert isinstance(layer, FusedDecoderLayer)
        layers[index] = DecoderStack([layer], kernels)
        accuracy = trial.measure([f"{name}.{index}"])
        layers[index] = layer
        if not accuracy.is_accepted:
            log.warning(
                "stacked layers disabled: off by %s; running layers one by one (slower)", accuracy
            )
            return False
    return True


def _is_chain(layers: Sequence[FusedDecoderLayer], run: Callable[[], object]) -> bool:
    """Whether each layer reads the output of the one before it, and all get the same RoPE."""
    inputs: list[tuple[FusedDecoderLayer, object, object]] = []
    outputs: list[object] = []

    def before(layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        assert isinstance(layer, FusedDecoderLayer)
        x = args[0] if args else kwargs.get("hidden_states")
        inputs.append((layer, x, kwargs.get("position_embeddings")))

    def after(_: nn.Module, __: object, output: object) -> None:
        outputs.append(output)

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    for at, (layer, x, cos_sin) in enumerate(inputs):
        index = at % len(layers)
        if layer is not layers[index] or cos_sin is not inputs[at - index][2]:
            return False
        if index and x is not outputs[at - 1]:
            return False
    return bool(inputs) and len(inputs) % len(layers) == 0


def _can_stack(layers: Sequence[FusedDecoderLayer]) -> bool:
    """Whether the kernels support every layer, and all have one shape."""
    return all(map(_is_compiled, layers)) and len(set(map(_shape, layers))) == 1


def _is_compiled(layer: FusedDecoderLayer) -> bool:
    return (
        isinstance(layer.ops, CpuLayerOps)
        and layer.ops.is_silu
        and all(isinstance(linear, CpuLinear) for linear in layer.linears)
        and layer.down.in_features % LANES == 0
    )


def _shape(layer: FusedDecoderLayer) -> tuple[object, ...]:
    spec = layer.spec
    linears = [(linear.in_features, linear.out_features) for linear in cpu_linears(layer)]
    dtype = spec.norms[0][0].dtype
    return spec.heads, spec.kv_heads, spec.dim, dtype, *linears


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
    for names in names_by_variant.values():
        checked = [name for name in names if name in trial.checked]
        make_ops = _choose_ops(model, checked, layer_attn_params, trial, make_exact, kernels)
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

    The model's layers are unchanged afterwards.
    """
    layers = {name: model.get_submodule(name) for name in names}
    try:
        fused_layers = {
            name: FusedDecoderLayer.of(layer, layer_attn_params, make)
            for name, layer in layers.items()
        }
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        log.debug("fused layers not used: %s", error)
        return None
    try:
        for name, fused in fused_layers.items():
            _replace(model, name, fused)
        for make_ops in _ops_choices(fused_layers[names[0]].spec, kernels) if names else ():
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
    except Exception as error:  # compilers and drivers raise many types
        log.info("fused layers disabled: their check failed: %s", one_line(error))
        return False
    if not accuracy.is_accepted:
        ops = type(next(iter(fused_layers.values())).ops).__name__
        log.info("fused layers with %s disabled: off by %s", ops, accuracy)
    return accuracy.is_accepted


def _ops_choices(spec: LayerSpec, kernels: Kernels | None) -> Iterator[MakeOps]:
    """Yield the ops that may lie between a layer's GEMMs, the fastest first."""
    if kernels is not None and fits_cpu_kernels(spec):
        yield partial(CpuLayerOps, kernels=kernels)
    if spec.norms[0][0].is_cuda and find_spec("triton") is not None:
        from container.model.layers import triton_layer_ops  # only where Triton is

        if triton_layer_ops.fits_triton(spec):
            yield triton_layer_ops.TritonLayerOps
    yield LayerOps


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
