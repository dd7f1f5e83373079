"""The ops between a decoder layer's GEMMs, by the compiled CPU kernels.

They compute the same as `LayerOps`, on bfloat16 or float32 rows in host memory, all of one dtype.
Addresses and memory that all layers of a step need are prepared once for the step.
"""

import ctypes

import torch

from container.model.attention.metadata import AttentionMetadata, Chunk
from container.model.attention.paged import prefill
from container.model.kernels.cpu import (
    LANES,
    MAX_DIM,
    DecoderLayerArgs,
    Kernels,
    LayerArgs,
    StepArgs,
    can_norm,
)
from container.model.kv_cache.cache import KVCache
from container.model.layers.layer_ops import CosSin, LayerOps, LayerSpec, is_silu


class CpuLayerOps(LayerOps):
    """LayerOps in C; falls back to PyTorch for a cache in another dtype and other activations."""

    def __init__(self, spec: LayerSpec, kernels: Kernels) -> None:
        super().__init__(spec)
        self._kernels = kernels
        self.is_silu = is_silu(spec)
        self._bf16 = int(spec.norms[0][0].dtype == torch.bfloat16)
        self._hidden = len(spec.norms[0][0])
        self._attn_width = spec.heads * spec.dim
        # Address of each norm's weight, and its eps.
        self._norms = [(weight.data_ptr(), eps) for weight, eps in spec.norms]
        sinks = spec.attn_params.sinks
        self._sinks = None if sinks is None else sinks.detach().float().contiguous()
        self._cache: KVCache | None = None
        self._layer = LayerArgs()

    def input_norm(self, x: torch.Tensor, step: AttentionMetadata) -> torch.Tensor:
        """Norm x."""
        memory = _memory(step, x)
        out, address = memory.result(self._hidden)
        weight, eps = self._norms[0]
        self._kernels.add_norm(
            None, x.data_ptr(), weight, address, eps, memory.rows, self._hidden, self._bf16
        )  # without a residual, x is only read
        return out

    def attention(
        self, qkv: torch.Tensor, cos_sin: CosSin, step: AttentionMetadata
    ) -> torch.Tensor:
        """Rotate q and k in place, store k and v in the cache, attend: [tokens, heads * dim]."""
        args = step_args(cos_sin, step)
        is_plain = step.cache.dtype == qkv.dtype  # PyTorch reads a cache of eight bits
        if not is_plain or args.layout != (len(step.slot_mapping), self.spec.dim, qkv.dtype):
            return super().attention(qkv, cos_sin, step)
        if step.cache is not self._cache:
            self._set_cache(step.cache)
        # Padding rows attend to nothing: they are never written and stay zero.
        out, address = _memory(step, qkv).result(self._attn_width, "attn_out")
        self._kernels.attend(args.address, self._layer_address, qkv.data_ptr(), address)
        for chunk in step.whole_chunks:
            rows = slice(chunk.start, chunk.stop)
            out[rows] = self._attend_again(qkv[rows], chunk, step)
        return out

    def _attend_again(
        self, qkv: torch.Tensor, chunk: Chunk, step: AttentionMetadata
    ) -> torch.Tensor:
        """Attend with rotated q, k and v that are stored, for tokens that see later ones."""
        heads = self.spec.heads
        states = qkv.view(len(qkv), -1, self.spec.dim)
        q, keys, values = states.split([heads, self.spec.kv_heads, self.spec.kv_heads], 1)
        index, params = self.spec.index, self._attn_params
        return prefill(step, index, chunk, q, keys, values, params).reshape(len(qkv), -1)

    def add_post_attention_norm(
        self, x: torch.Tensor, residual: torch.Tensor, step: AttentionMetadata
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x + residual, written over `residual`, and its norm."""
        memory = _memory(step, x)
        out, address = memory.result(self._hidden)
        weight, eps = self._norms[1]
        self._kernels.add_norm(
            x.data_ptr(), residual.data_ptr(), weight, address, eps,
            memory.rows, self._hidden, self._bf16,
        )  # fmt: skip
        return residual, out

    def act_and_mul(self, gate_up: torch.Tensor, step: AttentionMetadata) -> torch.Tensor:
        """Return silu(gate) * up, [tokens, width]; `gate_up` is [tokens, 2 * width]."""
        width = gate_up.shape[1] // 2
        if not self.is_silu or width % LANES:
            return super().act_and_mul(gate_up, step)
        memory = _memory(step, gate_up)
        out, address = memory.result(width)
        self._kernels.silu_mul(gate_up.data_ptr(), address, memory.rows, width, self._bf16)
        return out

    def add_residual(
        self, x: torch.Tensor, residual: torch.Tensor, step: AttentionMetadata
    ) -> torch.Tensor:
        """Return x + residual, written over `residual`."""
        self._kernels.add_norm(
            x.data_ptr(), residual.data_ptr(), None, None, 0.0,
            _memory(step, x).rows, self._hidden, self._bf16,
        )  # fmt: skip
        return residual

    def describe(self, layer: DecoderLayerArgs, cache: KVCache) -> None:
        """Fill in norms and attention of the kernels' struct of a layer."""
        for index, (address, eps) in enumerate(self._norms):
            layer.norms[index], layer.eps[index] = address, eps
        layer.attention = self._layer_args(cache)

    def _set_cache(self, cache: KVCache) -> None:
        self._layer = self._layer_args(cache)
        self._layer_address = ctypes.addressof(self._layer)
        self._cache = cache

    def _layer_args(self, cache: KVCache) -> LayerArgs:
        spec = self.spec
        weight, eps = spec.head_norm or (None, 0.0)
        return LayerArgs(
            keys=cache.keys[spec.index].data_ptr(),
            values=cache.values[spec.index].data_ptr(),
            norms=weight.data_ptr() if weight is not None else None,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            dim=spec.dim,
            sinks=self._sinks.data_ptr() if self._sinks is not None else None,
            window=spec.attn_params.window or 0,
            scale=spec.attn_params.scale,
            eps=eps,
            bf16=self._bf16,
        )


class _CosSinArgs:
    """The kernels' struct of a step with these cosines and sines; `address` is its address."""

    def __init__(self, cos_sin: CosSin, step: AttentionMetadata) -> None:
        cos, sin = (tensor.contiguous() for tensor in cos_sin)
        self.layout = cos.shape[1], cos.shape[2], cos.dtype
        spans, blocks = _spans(step)
        self._alive = cos, sin, spans, blocks
        self._args = StepArgs(
            cos=cos.data_ptr(), sin=sin.data_ptr(), slots=step.slot_mapping.data_ptr(),
            spans=spans.data_ptr(), blocks=blocks.data_ptr(), rows=len(step.slot_mapping),
            num_spans=len(spans), block_size=step.cache.block_size,
            num_decodes=len(spans) - len(step.chunks),
        )  # fmt: skip
        self.address = ctypes.addressof(self._args)


def step_args(cos_sin: CosSin, step: AttentionMetadata) -> _CosSinArgs:
    """Return the kernels' struct of a step, created once for all layers with the same RoPE."""
    return step.memoize(("angles", id(cos_sin[0])), lambda: _CosSinArgs(cos_sin, step))


class _Memory:
    """Memory for a step's results, which each layer overwrites."""

    def __init__(self, like: torch.Tensor) -> None:
        self.rows = len(like)
        self._dtype = like.dtype
        self._results: dict[tuple[int, str], tuple[torch.Tensor, int]] = {}

    def result(self, width: int, use: str = "") -> tuple[torch.Tensor, int]:
        """Return a tensor [tokens, width], initially zero, and its address; one for each `use`."""
        if (width, use) not in self._results:
            out = torch.zeros(self.rows, width, dtype=self._dtype)
            self._results[width, use] = out, out.data_ptr()
        return self._results[width, use]


def _memory(step: AttentionMetadata, like: torch.Tensor) -> _Memory:
    return step.memoize(("memory",), lambda: _Memory(like))


def _spans(step: AttentionMetadata) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `spans` and `blocks` of the kernels' `struct step`."""
    spans: list[tuple[int, int, int, int]] = []
    blocks: list[torch.Tensor] = []
    begin = 0
    for group in step.groups:
        width = group.block_table.shape[1]
        for index, length in enumerate(group.context_lens.tolist()):
            spans.append((group.start + index, 1, length, begin + index * width))
        blocks.append(group.block_table.flatten())
        begin += group.block_table.numel()
    for chunk in step.chunks:
        spans.append((chunk.start, chunk.stop - chunk.start, chunk.context_len, begin))
        blocks.append(chunk.block_table.flatten())
        begin += chunk.block_table.numel()
    if not spans:
        return torch.zeros(0, 4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    return torch.tensor(spans), torch.cat(blocks) if len(blocks) > 1 else blocks[0]


def fits_cpu_kernels(spec: LayerSpec) -> bool:
    """Whether the kernels support a layer's shapes, dtypes and devices."""
    weights = [weight for weight, _ in spec.norms]
    if spec.head_norm is not None:
        weights.append(spec.head_norm[0])
    return (
        all(can_norm(tensor) for tensor, _ in spec.norms)
        and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in weights)
        and len({tensor.dtype for tensor in weights}) == 1
        and spec.dim % LANES == 0
        and spec.dim <= MAX_DIM
        and (spec.attn_params.softcap, spec.attn_params.chunk) == (None, None)
    )
