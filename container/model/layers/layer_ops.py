"""The ops between a decoder layer's GEMMs: RMSNorm, RoPE, attention, SiLU-and-mul, in PyTorch.

They run on any device and in any dtype, and are the reference that `CpuLayerOps` and
`TritonLayerOps` are checked against. Rows are [tokens, ...]; x, the residual stream, is [tokens,
hidden].
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from container.model.attention.metadata import AttentionMetadata, AttentionParams
from container.model.attention.paged import attend

# A norm's weight and its epsilon.
Norm = tuple[torch.Tensor, float]
# Cosines and sines of the rows' positions, [1, tokens, dim] each.
CosSin = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A decoder layer without its linear layers.

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
    """The reference implementation, in PyTorch operations."""

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec
        self._attn_params = dataclasses.replace(
            spec.attn_params, scale=1.0
        )  # q is scaled by the rotation

    def input_norm(self, x: torch.Tensor, step: AttentionMetadata) -> torch.Tensor:
        """Norm x."""
        return _normed(x, self.spec.norms[0])

    def attention(
        self, qkv: torch.Tensor, cos_sin: CosSin, step: AttentionMetadata
    ) -> torch.Tensor:
        """Rotate q and k, store k and v in the cache, attend: [tokens, heads * dim]."""
        spec = self.spec
        states = qkv.view(len(qkv), -1, spec.dim)
        rotated = self._rotate(states[:, : -spec.kv_heads], cos_sin, step)
        q, k, v = rotated[:, : spec.heads], rotated[:, spec.heads :], states[:, -spec.kv_heads :]
        return attend(step, spec.index, q, k, v, self._attn_params).view(len(qkv), -1)

    def add_post_attention_norm(
        self, x: torch.Tensor, residual: torch.Tensor, step: AttentionMetadata
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x + residual and its norm. Does not change x, but may overwrite `residual`."""
        x = residual + x
        return x, _normed(x, self.spec.norms[1])

    def act_and_mul(self, gate_up: torch.Tensor, step: AttentionMetadata) -> torch.Tensor:
        """Return act(gate) * up, [tokens, width]; `gate_up` is [tokens, 2 * width]."""
        gate, up = gate_up.chunk(2, -1)
        return self.spec.act(gate).mul_(up)

    def add_residual(
        self, x: torch.Tensor, residual: torch.Tensor, step: AttentionMetadata
    ) -> torch.Tensor:
        """Return x + residual. Does not change x, but may overwrite `residual`."""
        return residual.add_(x)

    def _rotate(
        self, states: torch.Tensor, cos_sin: CosSin, step: AttentionMetadata
    ) -> torch.Tensor:
        """Apply RoPE to q and k, [tokens, heads + kv_heads, dim], and scale q."""
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
        """Return the factors of each head's halves: [tokens, heads + kv_heads, dim], twice.

        The rotation is (a, b) -> (a * cos - b * sin, b * cos + a * sin), a and b the two halves.
        """
        spec = self.spec
        scales = torch.ones(spec.heads + spec.kv_heads, 1, dtype=cos.dtype, device=cos.device)
        scales[: spec.heads] = spec.attn_params.scale
        signs = torch.ones(spec.dim, dtype=cos.dtype, device=cos.device)
        signs[: spec.dim // 2] = -1
        return cos[0][:, None] * scales, (sin[0] * signs)[:, None] * scales


def is_silu(spec: LayerSpec) -> bool:
    """Whether a layer's activation is SiLU, the only one that the kernels implement."""
    rows = torch.linspace(-8, 8, 64)
    return torch.equal(spec.act(rows), nn.functional.silu(rows))


def _normed(rows: torch.Tensor, norm: Norm) -> torch.Tensor:
    weight, eps = norm
    return nn.functional.rms_norm(rows, weight.shape, weight, eps)
