"""What a lean decoder layer does between its products: norms, rotation, attention, the gate.

In torch's operations, on any device and in any format. `CpuLayerOps` does the same with the
compiled kernels and is checked against this. Rows are [tokens, ...]; x, what layers add to, is
[tokens, hidden].
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from container.model.attention.metadata import AttentionMetadata, AttentionParams
from container.model.attention.paged import attend

# A norm's weight and what it adds to the mean square.
Norm = tuple[torch.Tensor, float]
# Cosines and sines of the rows' positions, [1, tokens, dim] each.
CosSin = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What a layer has beside its products.

    `norms` come before the attention and before the gate; `head_norm` has a row for each head of q
    and k, [heads + kv_heads, dim].
    """

    index: int
    heads: int
    kv_heads: int
    dim: int
    attn_params: AttentionParams
    norms: tuple[Norm, Norm]
    head_norm: Norm | None
    act: Callable[[torch.Tensor], torch.Tensor]


class LayerOps:
    """In torch's operations."""

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec
        self._attn_params = dataclasses.replace(
            spec.attn_params, scale=1.0
        )  # q is scaled as it is rotated

    def input_norm(self, x: torch.Tensor, step: AttentionMetadata) -> torch.Tensor:
        """Norm x."""
        return _normed(x, self.spec.norms[0])

    def attention(
        self, qkv: torch.Tensor, cos_sin: CosSin, step: AttentionMetadata
    ) -> torch.Tensor:
        """Rotate q and k, keep k and v, attend: [tokens, heads * dim]."""
        spec = self.spec
        states = qkv.view(len(qkv), -1, spec.dim)
        turned = self._rotate(states[:, : -spec.kv_heads], cos_sin, step)
        q, k, v = turned[:, : spec.heads], turned[:, spec.heads :], states[:, -spec.kv_heads :]
        return attend(step, spec.index, q, k, v, self._attn_params).view(len(qkv), -1)

    def add_post_attention_norm(
        self, x: torch.Tensor, residual: torch.Tensor, step: AttentionMetadata
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add to x, which stays, and norm the sum; return both. `residual` may be overwritten."""
        x = residual + x
        return x, _normed(x, self.spec.norms[1])

    def act_and_mul(self, gate_up: torch.Tensor, step: AttentionMetadata) -> torch.Tensor:
        """Multiply the gate's activation with up; both side by side in [tokens, 2 * width]."""
        gate, up = gate_up.chunk(2, -1)
        return self.spec.act(gate).mul_(up)

    def add_residual(
        self, x: torch.Tensor, residual: torch.Tensor, step: AttentionMetadata
    ) -> torch.Tensor:
        """Add to x, which stays; `residual` may be overwritten."""
        return residual.add_(x)

    def _rotate(
        self, states: torch.Tensor, cos_sin: CosSin, step: AttentionMetadata
    ) -> torch.Tensor:
        """Turn q and k, [tokens, heads + kv_heads, dim], by their positions; q also gets scaled."""
        spec = self.spec
        if spec.head_norm is not None:
            weight, eps = spec.head_norm
            states = nn.functional.rms_norm(states, (spec.dim,), None, eps) * weight
        cos, sin = step.memoize(
            ("rotation", id(cos_sin[0]), spec.heads, spec.kv_heads, spec.attn_params.scale),
            lambda: self._tables(*cos_sin),
        )
        return torch.addcmul(states * cos, states.roll(spec.dim // 2, -1), sin)

    def _tables(self, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the halves of each head are multiplied by: [tokens, heads + kv_heads, dim], twice.

        The rotation is (a, b) -> (a * cos - b * sin, b * cos + a * sin), a and b the two halves.
        """
        spec = self.spec
        scales = torch.ones(spec.heads + spec.kv_heads, 1, dtype=cos.dtype, device=cos.device)
        scales[: spec.heads] = spec.attn_params.scale
        signs = torch.ones(spec.dim, dtype=cos.dtype, device=cos.device)
        signs[: spec.dim // 2] = -1
        return cos[0][:, None] * scales, (sin[0] * signs)[:, None] * scales


def is_silu(spec: LayerSpec) -> bool:
    """Whether a layer's activation is silu, which is the one that kernels have."""
    rows = torch.linspace(-8, 8, 64)
    return torch.equal(spec.act(rows), nn.functional.silu(rows))


def _normed(rows: torch.Tensor, norm: Norm) -> torch.Tensor:
    weight, eps = norm
    return nn.functional.rms_norm(rows, weight.shape, weight, eps)
