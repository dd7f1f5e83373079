"""Decoder layers of the Llama family in few operations.

Models of that family (Llama, Mistral, Qwen 2 and 3, SmolLM ...) share one layer:

    x = x + o(attend(rotate(norm(q)), rotate(norm(k)), v))      q, k, v of norm(x)
    x = x + down(act(gate) * up)                                gate, up of norm(x)

A step of a small model on a CPU is bound by the number of operations, not by their size, so here
there are four products, and what lies between them (layer_ops.py) is done in few operations of
torch or, where they can, by the compiled kernels. Which layers may be replaced is not looked up in
a list: a layer must have these parts, and must be as accurate as the model's own on the same input
(reference_check.py).
"""

from typing import Any

import torch
from torch import nn

from container.model.attention.metadata import PagedStep, Rule
from container.model.kernels.cpu import Kernels
from container.model.layers.cpu_layer_ops import FusedGlue, fits_cpu_kernels
from container.model.layers.layer_ops import Angles, Glue, LayerFacts, Norm
from container.model.layers.linear import FastLinear, MakeLinear, joined_linear
from container.model.layers.rms_norm import norm_eps

Products = tuple[FastLinear, FastLinear, FastLinear, FastLinear]


class LeanLayer(nn.Module):
    """One decoder layer: `qkv`, `o`, `gate_up` and `down`, and what lies between them."""

    def __init__(self, facts: LayerFacts, products: Products) -> None:
        super().__init__()
        self.qkv, self.o, self.gate_up, self.down = products
        # As a tuple they are found without a module's slow look-up.
        self.products = products
        self.facts = facts
        self.glue = Glue(facts)

    @classmethod
    def of(cls, layer: nn.Module, rules: list[Rule], make: MakeLinear) -> "LeanLayer":
        """The same as a layer that has the parts named above."""
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        products = (
            joined_linear([attention.q_proj, attention.k_proj, attention.v_proj], make),
            joined_linear([attention.o_proj], make),
            joined_linear([mlp.gate_proj, mlp.up_proj], make),
            joined_linear([mlp.down_proj], make),
        )
        lean = cls(_facts(layer, rules[attention.layer_idx]), products)
        if hasattr(layer, "attention_type"):
            lean.attention_type = layer.attention_type
        return lean

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: Angles,
        step: PagedStep,
        **_: object,
    ) -> torch.Tensor:
        """Compute [1, tokens, hidden] from the same."""
        glue = self.glue
        qkv, o, gate_up, down = self.products
        x = hidden_states.squeeze(0).contiguous()
        seen = glue.attention(qkv(glue.before_attention(x, step)), position_embeddings, step)
        x, normed = glue.before_gate(x, o(seen), step)
        return glue.after(x, down(glue.gated(gate_up(normed), step)), step).unsqueeze(0)

    def fuse(self, kernels: Kernels | None) -> None:
        """Use the kernels from now on, if there are any that can."""
        self.glue = Glue(self.facts)
        if kernels is not None and fits_cpu_kernels(self.facts):
            self.glue = FusedGlue(self.facts, kernels)


def _facts(layer: Any, rule: Rule) -> LayerFacts:
    attention = layer.self_attn
    dim: int = attention.head_dim
    heads, kv_heads = (one.out_features // dim for one in (attention.q_proj, attention.k_proj))
    head_norm = None
    if hasattr(attention, "q_norm"):
        (of_q, eps), (of_k, _) = _norm(attention.q_norm), _norm(attention.k_norm)
        head_norm = torch.cat([of_q.expand(heads, -1), of_k.expand(kv_heads, -1)]), eps
    norms = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
    index: int = attention.layer_idx
    return LayerFacts(index, heads, kv_heads, dim, rule, norms, head_norm, layer.mlp.act_fn)


def _norm(module: Any) -> Norm:
    return module.weight.detach(), norm_eps(module)
