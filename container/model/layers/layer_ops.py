"""What a lean decoder layer does between its products: norms, rotation, attention, the gate.

In torch's operations, on any device and in any format. `FusedGlue` does the same with the compiled
kernels and is checked against this. Rows are [tokens, ...]; x, what layers add to, is [tokens,
hidden].
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from container.model.attention.metadata import PagedStep, Rule
from container.model.attention.paged import attend

# A norm's weight and what it adds to the mean square.
Norm = tuple[torch.Tensor, float]
# Cosines and sines of the rows' positions, [1, tokens, dim] each.
Angles = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What a layer has beside its products.

    `norms` come before the attention and before the gate; `head_norm` has a row for each head of q
    and k, [heads + kv_heads, dim].
    """

    index: int
    heads: int
    kv_heads: int
    dim: int
    rule: Rule
    norms: tuple[Norm, Norm]
    head_norm: Norm | None
    act: Callable[[torch.Tensor], torch.Tensor]


class Glue:
    """In torch's operations."""

    def __init__(self, facts: LayerFacts) -> None:
        self.facts = facts
        self._rule = dataclasses.replace(facts.rule, scale=1.0)  # q is scaled as it is rotated

    def before_attention(self, x: torch.Tensor, step: PagedStep) -> torch.Tensor:
        """Norm x."""
        return _normed(x, self.facts.norms[0])

    def attention(self, qkv: torch.Tensor, angles: Angles, step: PagedStep) -> torch.Tensor:
        """Rotate q and k, keep k and v, attend: [tokens, heads * dim]."""
        facts = self.facts
        states = qkv.view(len(qkv), -1, facts.dim)
        turned = self._rotate(states[:, : -facts.kv_heads], angles, step)
        q, k, v = turned[:, : facts.heads], turned[:, facts.heads :], states[:, -facts.kv_heads :]
        return attend(step, facts.index, q, k, v, self._rule).view(len(qkv), -1)

    def before_gate(
        self, x: torch.Tensor, more: torch.Tensor, step: PagedStep
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add to x, which stays, and norm the sum; return both. `more` may be overwritten."""
        x = more + x
        return x, _normed(x, self.facts.norms[1])

    def gated(self, gate_up: torch.Tensor, step: PagedStep) -> torch.Tensor:
        """Multiply the gate's activation with up; both side by side in [tokens, 2 * width]."""
        gate, up = gate_up.chunk(2, -1)
        return self.facts.act(gate).mul_(up)

    def after(self, x: torch.Tensor, more: torch.Tensor, step: PagedStep) -> torch.Tensor:
        """Add to x, which stays; `more` may be overwritten."""
        return more.add_(x)

    def _rotate(self, states: torch.Tensor, angles: Angles, step: PagedStep) -> torch.Tensor:
        """Turn q and k, [tokens, heads + kv_heads, dim], by their positions; q also gets scaled."""
        facts = self.facts
        if facts.head_norm is not None:
            weight, eps = facts.head_norm
            states = nn.functional.rms_norm(states, (facts.dim,), None, eps) * weight
        cos, sin = step.remember(
            ("rotation", id(angles[0]), facts.heads, facts.kv_heads, facts.rule.scale),
            lambda: self._tables(*angles),
        )
        return torch.addcmul(states * cos, states.roll(facts.dim // 2, -1), sin)

    def _tables(self, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the halves of each head are multiplied by: [tokens, heads + kv_heads, dim], twice.

        The rotation is (a, b) -> (a * cos - b * sin, b * cos + a * sin), a and b the two halves.
        """
        facts = self.facts
        scales = torch.ones(facts.heads + facts.kv_heads, 1, dtype=cos.dtype, device=cos.device)
        scales[: facts.heads] = facts.rule.scale
        signs = torch.ones(facts.dim, dtype=cos.dtype, device=cos.device)
        signs[: facts.dim // 2] = -1
        return cos[0][:, None] * scales, (sin[0] * signs)[:, None] * scales


def is_silu(facts: LayerFacts) -> bool:
    """Whether a layer's activation is silu, which is the one that kernels have."""
    rows = torch.linspace(-8, 8, 64)
    return torch.equal(facts.act(rows), nn.functional.silu(rows))


def _normed(rows: torch.Tensor, norm: Norm) -> torch.Tensor:
    weight, eps = norm
    return nn.functional.rms_norm(rows, weight.shape, weight, eps)
