"""Stacks fused decoder layers, so that the CPU kernels run all of them in one call."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import nn

from container.errors import one_line
from container.model.checks.layer_trial import LayerTrial
from container.model.fallbacks import TRY_ANOTHER_DTYPE
from container.model.kernels.cpu import LANES, Kernels
from container.model.layers.cpu_decoder import DecoderStack, cpu_linears
from container.model.layers.cpu_layer_ops import CpuLayerOps
from container.model.layers.cpu_linear import CpuLinear
from container.model.layers.decoder_layer import FusedDecoderLayer

log = logging.getLogger(__name__)


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
        obstacle = _obstacle(fused)
        if obstacle is None and not _is_chain(fused, run):
            obstacle = "a layer reads more than the output of the one before it"
        if obstacle is not None:  # the kind of model or processor; nothing avoids it
            log.info("layers run one by one instead of in one call: %s", obstacle)
        elif _is_stack_accurate(child, name, kernels, trial):
            model.set_submodule(name, nn.ModuleList([DecoderStack(fused, kernels)]))


def _is_stack_accurate(
    layers: nn.ModuleList, name: str, kernels: Kernels, trial: LayerTrial
) -> bool:
    for index, layer in enumerate(layers):
        if f"{name}.{index}" not in trial.checked:
            continue
        assert isinstance(layer, FusedDecoderLayer)
        try:
            layers[index] = DecoderStack([layer], kernels)
            accuracy = trial.measure([f"{name}.{index}"])
            reason = None if accuracy.is_accepted else f"they are off by {accuracy}"
        except Exception as error:  # a layer that only resembles those that the kernels know
            reason = f"their check failed: {one_line(error)}"
        finally:
            layers[index] = layer
        if reason is not None:
            trial.fallbacks.add(
                "all layers in one call",
                f"disabled, since {reason}; layers run one by one",
                TRY_ANOTHER_DTYPE,
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


def _obstacle(layers: Sequence[FusedDecoderLayer]) -> str | None:
    """Return why the kernels do not support all layers in one call; None if they do."""
    for layer in layers:
        if not isinstance(layer.ops, CpuLayerOps):
            return "the kernels do not support its attention or norms"
        if not layer.ops.is_silu:
            return "its activation is not SiLU"
        if not all(isinstance(linear, CpuLinear) for linear in layer.linears):
            return "PyTorch multiplies its weights, by this processor or their format"
        if layer.down.in_features % LANES:
            return f"its MLP's width is no multiple of {LANES}"
    return None if len(set(map(_shape, layers))) == 1 else "its layers differ in shape"


def _shape(layer: FusedDecoderLayer) -> tuple[object, ...]:
    spec = layer.spec
    linears = [(linear.in_features, linear.out_features) for linear in cpu_linears(layer)]
    dtype = spec.norms[0][0].dtype
    return spec.heads, spec.kv_heads, spec.dim, dtype, *linears
