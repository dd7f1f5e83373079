"""The ops between a decoder layer's GEMMs, as Triton kernels.

They compute the same as `LayerOps`, in four kernels besides attention. Import this module only
where Triton is installed.
"""

import torch

from container.model.attention.metadata import AttentionMetadata
from container.model.attention.paged import attend_cached
from container.model.kernels import triton_attention, triton_layer
from container.model.layers.layer_ops import CosSin, LayerOps, LayerSpec, is_silu

# A row must fit into one program, and a head into the memory of one.
MAX_HIDDEN = 32768
MAX_DIM = 256


class TritonLayerOps(LayerOps):
    """LayerOps in Triton."""

    def input_norm(self, x: torch.Tensor, step: AttentionMetadata) -> torch.Tensor:
        """Norm x."""
        _, normed = triton_layer.add_norm(x, None, *self.spec.norms[0])
        return normed

    def attention(
        self, qkv: torch.Tensor, cos_sin: CosSin, step: AttentionMetadata
    ) -> torch.Tensor:
        """Rotate q and k, store k and v in the cache, attend: [tokens, heads * dim]."""
        spec, here = self.spec, step.on(qkv.device)
        cos, sin = (part[0].contiguous() for part in cos_sin)
        q, k, v = triton_layer.rope_and_store_kv(
            qkv.contiguous(),
            cos,
            sin,
            here.slot_mapping,
            here.cache.keys[spec.index],
            here.cache.values[spec.index],
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            block_size=here.cache.block_size,
            scale=spec.attn_params.scale,
            head_norm=spec.head_norm,
        )
        return attend_cached(here, spec.index, q, k, v, self._attn_params).view(len(qkv), -1)

    def add_post_attention_norm(
        self, x: torch.Tensor, residual: torch.Tensor, step: AttentionMetadata
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x + residual and its norm. Changes neither."""
        return triton_layer.add_norm(x, residual, *self.spec.norms[1])

    def act_and_mul(self, gate_up: torch.Tensor, step: AttentionMetadata) -> torch.Tensor:
        """Return silu(gate) * up, [tokens, width]; `gate_up` is [tokens, 2 * width]."""
        return triton_layer.silu_times(gate_up)


def fits_triton(spec: LayerSpec) -> bool:
    """Whether the kernels support a layer's shapes, dtypes and devices."""
    weights = [weight for weight, _ in spec.norms]
    if spec.head_norm is not None:
        weights.append(spec.head_norm[0])
    return (
        all(tensor.device.type == triton_attention.device_type() for tensor in weights)
        and all(tensor.is_contiguous() for tensor in weights)
        and {tensor.dtype for tensor in weights} <= triton_attention.TYPES.keys()
        and all(len(weight) <= MAX_HIDDEN for weight, _ in spec.norms)
        and spec.dim % 2 == 0
        and spec.dim <= MAX_DIM
        and is_silu(spec)
    )
