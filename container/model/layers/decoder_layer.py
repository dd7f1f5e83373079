"""Decoder layers of the Llama family in few operations.

Models of that family (Llama, Mistral, Qwen 2 and 3, SmolLM ...) share one layer:

    x = x + o(attend(rotate(norm(q)), rotate(norm(k)), v))      q, k, v of norm(x)
    x = x + down(act(gate) * up)                                gate, up of norm(x)

A step of a small model on a CPU is bound by the number of operations, not by their size. So a fused
layer has four GEMMs, and the ops between them (layer_ops.py) are few PyTorch operations or, where
possible, compiled kernels. There is no list of supported models: a layer is replaced if it has
these parts and the replacement is as accurate on the same input (reference_check.py).
"""

from typing import Any

import torch
from torch import nn

from container.model.attention.metadata import AttentionMetadata, AttentionParams
from container.model.kernels.cpu import Kernels
from container.model.layers.cpu_layer_ops import CpuLayerOps, fits_cpu_kernels
from container.model.layers.layer_ops import CosSin, LayerOps, LayerSpec, Norm
from container.model.layers.linear import FastLinear, MakeLinear, merged_linear
from container.model.layers.rms_norm import norm_eps

Linears = tuple[FastLinear, FastLinear, FastLinear, FastLinear]


class FusedDecoderLayer(nn.Module):
    """One decoder layer: the GEMMs `qkv`, `o`, `gate_up` and `down`, and the ops between them."""

    def __init__(self, spec: LayerSpec, linears: Linears) -> None:
        super().__init__()
        self.qkv, self.o, self.gate_up, self.down = linears
        # A tuple avoids the slow attribute look-up of nn.Module.
        self.linears = linears
        self.spec = spec
        self.ops = LayerOps(spec)

    @classmethod
    def of(
        cls, layer: nn.Module, layer_attn_params: list[AttentionParams], make: MakeLinear
    ) -> "FusedDecoderLayer":
        """Create the fused form of a layer that has the parts named above."""
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        linears = (
            merged_linear([attention.q_proj, attention.k_proj, attention.v_proj], make),
            merged_linear([attention.o_proj], make),
            merged_linear([mlp.gate_proj, mlp.up_proj], make),
            merged_linear([mlp.down_proj], make),
        )
        fused = cls(_spec(layer, layer_attn_params[attention.layer_idx]), linears)
        if hasattr(layer, "attention_type"):
            fused.attention_type = layer.attention_type
        return fused

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: CosSin,
        step: AttentionMetadata,
        **_: object,
    ) -> torch.Tensor:
        """Run the layer on [1, tokens, hidden]; returns the same shape."""
        ops = self.ops
        qkv, o, gate_up, down = self.linears
        x = hidden_states.squeeze(0).contiguous()
        attn_out = ops.attention(qkv(ops.input_norm(x, step)), position_embeddings, step)
        x, normed = ops.add_post_attention_norm(x, o(attn_out), step)
        return ops.add_residual(x, down(ops.act_and_mul(gate_up(normed), step)), step).unsqueeze(0)

    def fuse(self, kernels: Kernels | None) -> None:
        """Use the CPU kernels from now on, if they support the layer."""
        self.ops = LayerOps(self.spec)
        if kernels is not None and fits_cpu_kernels(self.spec):
            self.ops = CpuLayerOps(self.spec, kernels)


def _spec(layer: Any, attn_params: AttentionParams) -> LayerSpec:
    attention = layer.self_attn
    dim: int = attention.head_dim
    heads, kv_heads = (
        projection.out_features // dim for projection in (attention.q_proj, attention.k_proj)
    )
    head_norm = None
    if hasattr(attention, "q_norm"):
        (of_q, eps), (of_k, _) = _norm(attention.q_norm), _norm(attention.k_norm)
        head_norm = torch.cat([of_q.expand(heads, -1), of_k.expand(kv_heads, -1)]), eps
    norms = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
    index: int = attention.layer_idx
    return LayerSpec(index, heads, kv_heads, dim, attn_params, norms, head_norm, layer.mlp.act_fn)


def _norm(module: Any) -> Norm:
    return module.weight.detach(), norm_eps(module)
