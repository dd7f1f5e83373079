"""What a lean decoder layer does between its products, by the kernels in Triton.

The same as `Glue`, whose rows it takes, in four kernels beside the attention itself. Only to be
imported where Triton is.
"""

import torch

from container.model.attention.metadata import PagedStep
from container.model.attention.paged import attend_kept
from container.model.kernels import triton_attention, triton_layer
from container.model.layers.layer_ops import Angles, Glue, LayerFacts, is_silu

# A row must fit into one program, and a head into the memory of one.
MAX_HIDDEN = 32768
MAX_DIM = 256


class TritonGlue(Glue):
    """In the kernels' functions."""

    def before_attention(self, x: torch.Tensor, step: PagedStep) -> torch.Tensor:
        """Norm x."""
        _, normed = triton_layer.add_norm(x, None, *self.facts.norms[0])
        return normed

    def attention(self, qkv: torch.Tensor, angles: Angles, step: PagedStep) -> torch.Tensor:
        """Rotate q and k, keep k and v, attend: [tokens, heads * dim]."""
        facts, here = self.facts, step.on(qkv.device)
        cos, sin = (one[0].contiguous() for one in angles)
        q, k, v = triton_layer.rotate_and_keep(
            qkv.contiguous(),
            cos,
            sin,
            here.slots,
            here.cache.keys[facts.index],
            here.cache.values[facts.index],
            heads=facts.heads,
            kv_heads=facts.kv_heads,
            block_size=here.cache.block_size,
            scale=facts.rule.scale,
            head_norm=facts.head_norm,
        )
        return attend_kept(here, facts.index, q, k, v, self._rule).view(len(qkv), -1)

    def before_gate(
        self, x: torch.Tensor, more: torch.Tensor, step: PagedStep
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add to x, which stays, and norm the sum; return both."""
        return triton_layer.add_norm(x, more, *self.facts.norms[1])

    def gated(self, gate_up: torch.Tensor, step: PagedStep) -> torch.Tensor:
        """Multiply the gate's activation with up; both side by side in [tokens, 2 * width]."""
        return triton_layer.silu_times(gate_up)


def fits_triton(facts: LayerFacts) -> bool:
    """Whether the kernels can do what a layer does."""
    weights = [weight for weight, _ in facts.norms]
    if facts.head_norm is not None:
        weights.append(facts.head_norm[0])
    return (
        all(one.device.type == triton_attention.device_type() for one in weights)
        and all(one.is_contiguous() for one in weights)
        and {one.dtype for one in weights} <= triton_attention.TYPES.keys()
        and all(len(weight) <= MAX_HIDDEN for weight, _ in facts.norms)
        and facts.dim % 2 == 0
        and facts.dim <= MAX_DIM
        and is_silu(facts)
    )
