"""All decoder layers of a model in one call of the kernels, whose threads are woken once a step.

Between the layers nothing is Python's, so a step of few rows takes little more than reading the
weights. What is computed is what the layers compute one by one, bit by bit; they do it where the
kernels cannot: adapters, a cache of eight bits.
"""

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import nn

from container.model.attention import PagedStep
from container.model.fused_glue import FusedGlue, step_args
from container.model.glue import Angles
from container.model.kernels import DecoderArgs, DecoderLayerArgs, Kernels, find_kernels
from container.model.kv_cache import KVCache
from container.model.layers import LeanLayer
from container.model.products import KernelLinear


class DecoderStack(nn.Module):
    """Lean layers, each of which gets what the one before has made, and the same for all else."""

    def __init__(self, layers: Sequence[LeanLayer], kernels: Kernels) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if hasattr(layers[0], "attention_type"):
            self.attention_type = layers[0].attention_type
        self._kernels = kernels
        self._first = layers[0]
        self._products = [
            product for product in layers[0].products if isinstance(product, KernelLinear)
        ]
        self._cache: KVCache | None = None
        self._args = DecoderArgs()
        self._scratch: tuple[torch.Tensor, ...] = ()

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: Angles,
        step: PagedStep,
        **_: object,
    ) -> torch.Tensor:
        """Compute [1, tokens, hidden] from the same."""
        x = hidden_states[0].clone(memory_format=torch.contiguous_format)
        args = step_args(position_embeddings, step)
        facts = self._first.facts
        is_plain = step.cache.dtype == x.dtype and not step.has_adapters
        if not is_plain or args.kind != (len(x), facts.dim, x.dtype):
            for layer in self.layers:
                hidden_states = layer(
                    hidden_states, position_embeddings=position_embeddings, step=step
                )
            return hidden_states
        if step.cache is not self._cache:
            self._set_cache(step.cache)
        if not self._scratch or len(self._scratch[0]) < len(x):
            self._set_scratch(len(x), x.dtype)
        self._args.step, self._args.x = args.address, x.data_ptr()
        self._kernels.decode(ctypes.addressof(self._args))
        return x[None]

    def _set_cache(self, cache: KVCache) -> None:
        made = (DecoderLayerArgs * len(self.layers))()
        for place, layer in zip(made, self.layers, strict=True):
            assert isinstance(layer, LeanLayer)
            assert isinstance(layer.glue, FusedGlue)
            layer.glue.describe(place, cache)
            place.qkv, place.o, place.gate_up, place.down = (
                product.weight_args
                for product in layer.products
                if isinstance(product, KernelLinear)
            )
        hidden = self._products[0].in_features
        is_bf16 = self._first.facts.norms[0][0].dtype == torch.bfloat16
        self._layers = made
        self._stages = ctypes.create_string_buffer(self._kernels.layer_stages * len(made) + 64)
        begin = ctypes.addressof(self._stages)
        self._args = DecoderArgs(
            layers=ctypes.addressof(made), stages=begin + -begin % 64, num_layers=len(made),
            hidden=hidden, bf16=is_bf16,
        )  # fmt: skip
        self._cache, self._scratch = cache, ()

    def _set_scratch(self, rows: int, dtype: torch.dtype) -> None:
        """Memory for what lies between the products, kept for the next step."""
        qkv, o, gate_up, down = self._products
        widths = o.out_features, qkv.out_features, o.in_features, gate_up.out_features
        self._scratch = tuple(
            torch.zeros(rows, width, dtype=dtype) for width in (*widths, down.in_features)
        )
        addresses = [one.data_ptr() for one in self._scratch]
        args = self._args
        args.normed, args.qkv, args.seen, args.gate_up, args.gated = addresses


@torch.inference_mode()
def stack_layers(model: nn.Module, run: Callable[[], object]) -> None:
    """Stack a model's layers, in place, if the kernels can do all of every one.

    `run` calls the model; all layers must be given the same angles.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            layers = list(child) if isinstance(child, nn.ModuleList) else []
            lean = [layer for layer in layers if isinstance(layer, LeanLayer)]
            if lean and len(lean) == len(layers) and _can_stack(lean) and _share_angles(lean, run):
                kernels = find_kernels()
                assert kernels is not None
                setattr(parent, name, nn.ModuleList([DecoderStack(lean, kernels)]))


def _share_angles(layers: Sequence[LeanLayer], run: Callable[[], object]) -> bool:
    given: list[object] = []

    def note(_: nn.Module, __: object, kwargs: dict[str, object]) -> None:
        given.append(kwargs.get("position_embeddings"))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    return all(one is given[at - at % len(layers)] for at, one in enumerate(given))


def _can_stack(layers: Sequence[LeanLayer]) -> bool:
    """Whether the kernels can do all of every layer."""
    return all(
        isinstance(layer.glue, FusedGlue)
        and layer.glue.is_silu
        and all(isinstance(product, KernelLinear) for product in layer.products)
        for layer in layers
    )
