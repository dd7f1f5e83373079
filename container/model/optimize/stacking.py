"""Stacks fused decoder layers, so that the CPU kernels run all of them in one call."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from container.errors import one_line
from container.model.fallbacks import TRY_ANOTHER_DTYPE
from container.model.kernels.cpu import LANES, Kernels
from container.model.layers.cpu_decoder import DecoderStack, cpu_linears
from container.model.layers.cpu_layer_ops import CpuLayerOps
from container.model.layers.cpu_linear import CpuLinear
from container.model.layers.decoder_layer import FusedDecoderLayer
from container.model.reference_check import LayerTrial


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
