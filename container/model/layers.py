"""Decoder layers of the Llama family in few operations.

Models of that family (Llama, Mistral, Qwen 2 and 3, SmolLM ...) share one layer:

    x = x + o(attend(rotate(norm(q)), rotate(norm(k)), v))      q, k, v of norm(x)
    x = x + down(act(gate) * up)                                gate, up of norm(x)

A step of a small model on a CPU is bound by the number of operations, not by their size, so here q
and k are rotated together, in three operations, and the softmax's scale is part of the rotation.
Which layers may be replaced is not looked up in a list: a layer must have these parts, and must
compute the same as the model's own on the same input.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from container.model.attention import PagedStep, Rule, attend
from container.model.packing import (
    MakeLinear,
    PackedLinear,
    is_plain_rms_norm,
    joined_linear,
    norm_eps,
)

log = logging.getLogger(__name__)

LAYER_NORMS = {"input_layernorm", "post_attention_layernorm"}
LAYER_PARTS = LAYER_NORMS | {"self_attn", "mlp"}
ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
# How far a layer's output may be off, as a share of the largest number.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.005}

# A call of a layer: its positional arguments, the others, and what it returned.
Call = tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]


class LeanLayer(nn.Module):
    """One decoder layer; `layer` has the parts named above."""

    def __init__(self, layer: nn.Module, rules: list[Rule], make: MakeLinear) -> None:
        super().__init__()
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self.index: int = attention.layer_idx
        self.head_dim: int = attention.head_dim
        self.heads = attention.q_proj.out_features // self.head_dim
        self.kv_heads = attention.k_proj.out_features // self.head_dim
        self.scale = rules[self.index].scale
        self.rule = dataclasses.replace(rules[self.index], scale=1.0)
        self.qkv = joined_linear([attention.q_proj, attention.k_proj, attention.v_proj], make)
        self.o = joined_linear([attention.o_proj], make)
        self.gate_up = joined_linear([mlp.gate_proj, mlp.up_proj], make)
        self.down = joined_linear([mlp.down_proj], make)
        self.act: Callable[[torch.Tensor], torch.Tensor] = mlp.act_fn
        self.norms = [_norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)]
        self.head_norm = self._head_norm(attention) if hasattr(attention, "q_norm") else None
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        step: PagedStep,
        **_: object,
    ) -> torch.Tensor:
        """Compute [1, tokens, hidden] from the same."""
        tokens = hidden_states.shape[1]
        rows = hidden_states[0]
        states = self.qkv(_normed(rows, self.norms[0])).view(tokens, -1, self.head_dim)
        turned = self._rotate(states[:, : -self.kv_heads], position_embeddings, step)
        seen = attend(
            step,
            self.index,
            turned[:, : self.heads],
            turned[:, self.heads :],
            states[:, -self.kv_heads :],
            self.rule,
        )
        rows = self.o(seen.view(tokens, -1)) + rows
        gate, up = self.gate_up(_normed(rows, self.norms[1])).chunk(2, -1)
        rows = self.down(self.act(gate).mul_(up)).add_(rows)
        return rows[None]

    def _rotate(
        self, states: torch.Tensor, embeddings: tuple[torch.Tensor, torch.Tensor], step: PagedStep
    ) -> torch.Tensor:
        """Turn q and k, [tokens, heads + kv_heads, dim], by their positions; q also gets scaled."""
        if self.head_norm is not None:
            weight, eps = self.head_norm
            states = nn.functional.rms_norm(states, (self.head_dim,), None, eps) * weight
        cos, sin = step.remember(
            ("rotation", id(embeddings[0]), self.heads, self.kv_heads, self.scale),
            lambda: self._tables(*embeddings),
        )
        return torch.addcmul(states * cos, states.roll(self.head_dim // 2, -1), sin)

    def _tables(self, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the halves of each head are multiplied by: [tokens, heads + kv_heads, dim], twice.

        The rotation is (a, b) -> (a * cos - b * sin, b * cos + a * sin), a and b the two halves.
        """
        scales = torch.ones(self.heads + self.kv_heads, 1, dtype=cos.dtype, device=cos.device)
        scales[: self.heads] = self.scale
        signs = torch.ones(self.head_dim, dtype=cos.dtype, device=cos.device)
        signs[: self.head_dim // 2] = -1
        return cos[0][:, None] * scales, (sin[0] * signs)[:, None] * scales

    def _head_norm(self, attention: Any) -> tuple[torch.Tensor, float]:
        """Weights of the norms of all heads of q and k, [heads + kv_heads, dim]."""
        (of_q, eps), (of_k, _) = _norm(attention.q_norm), _norm(attention.k_norm)
        return torch.cat([of_q.expand(self.heads, -1), of_k.expand(self.kv_heads, -1)]), eps


def find_lean(model: nn.Module) -> dict[str, nn.Module]:
    """Layers with the parts of the family, by name."""
    return {name: module for name, module in model.named_modules() if _has_parts(module)}


@torch.inference_mode()
def make_lean(
    model: nn.Module, rules: list[Rule], run: Callable[[], object], make: MakeLinear
) -> None:
    """Replace layers in place, where that changes nothing; `run` calls the model once.

    `rules` has what each layer tells its attention, which a short run does not show.
    """
    calls: dict[str, Call] = {}
    hooks = []
    candidates = find_lean(model)
    for name, layer in candidates.items():

        def note(_, args, kwargs, output, name=name):  # type: ignore[no-untyped-def]
            calls[name] = (args, kwargs, output)

        hooks.append(layer.register_forward_hook(note, with_kwargs=True))
    run()
    for hook in hooks:
        hook.remove()
    replaced = 0
    while calls:
        name, call = calls.popitem()
        layer = candidates.pop(name)
        lean = _replacement(layer, rules, call)
        if lean is not None:
            if make is not PackedLinear:  # the check was strict, as its weights were exact
                lean = LeanLayer(layer, rules, make)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, lean)
            replaced += 1
    log.debug("replaced %d decoder layers", replaced)


def _replacement(layer: nn.Module, rules: list[Rule], call: Call) -> LeanLayer | None:
    """Another form of a layer, if it computes the same."""
    args, kwargs, expected = call
    try:
        lean = LeanLayer(layer, rules, PackedLinear)
        got = lean(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        log.debug("a layer stays as it is: %s", error)
        return None
    if not isinstance(expected, torch.Tensor) or got.shape != expected.shape:
        return None
    scale = expected.float().abs().max().clamp_(min=1e-6)
    off = (got - expected).float().abs().max() / scale
    return lean if off <= TOLERANCE[expected.dtype] else None


def _has_parts(module: nn.Module) -> bool:
    if {name for name, _ in module.named_children()} != LAYER_PARTS:
        return False
    attention: Any = module.self_attn
    mlp: Any = module.mlp
    parts = {name for name, _ in attention.named_children()}
    if parts - HEAD_NORMS != ATTENTION_PARTS or parts & HEAD_NORMS not in (set(), HEAD_NORMS):
        return False
    if {name for name, _ in mlp.named_children()} != MLP_PARTS:
        return False
    linears = [attention.get_submodule(name) for name in ATTENTION_PARTS]
    linears += [mlp.get_submodule(name) for name in MLP_PARTS - {"act_fn"}]
    norms = [module.get_submodule(name) for name in LAYER_NORMS]
    norms += [attention.get_submodule(name) for name in parts & HEAD_NORMS]
    are_plain = all(type(linear) is nn.Linear for linear in linears)
    return are_plain and all(map(is_plain_rms_norm, norms))


def _norm(module: Any) -> tuple[torch.Tensor, float]:
    return module.weight, norm_eps(module)


def _normed(rows: torch.Tensor, norm: tuple[torch.Tensor, float]) -> torch.Tensor:
    weight, eps = norm
    return nn.functional.rms_norm(rows, weight.shape, weight, eps)
