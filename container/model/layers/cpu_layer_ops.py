"""What a lean decoder layer does between its products, by the compiled kernels.

The same as `Glue`, whose rows it takes: bfloat16 or float32 on the CPU, all of one format. What all
layers of a step need (addresses, and memory for results that the next product reads at once) is
made once for the step.
"""

import ctypes

import torch

from container.model.attention.metadata import PagedStep
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
from container.model.layers.layer_ops import Angles, Glue, LayerFacts, is_silu


class FusedGlue(Glue):
    """In the library's functions."""

    def __init__(self, facts: LayerFacts, kernels: Kernels) -> None:
        super().__init__(facts)
        self._kernels = kernels
        self.is_silu = is_silu(facts)
        self._bf16 = int(facts.norms[0][0].dtype == torch.bfloat16)
        self._hidden = len(facts.norms[0][0])
        self._seen = facts.heads * facts.dim
        # Address of each norm's weight, and its eps.
        self._norms = [(weight.data_ptr(), eps) for weight, eps in facts.norms]
        self._cache: KVCache | None = None
        self._layer = LayerArgs()

    def before_attention(self, x: torch.Tensor, step: PagedStep) -> torch.Tensor:
        """Norm x."""
        memory = _memory(step, x)
        out, address = memory.result(self._hidden)
        weight, eps = self._norms[0]
        self._kernels.add_norm(
            None, x.data_ptr(), weight, address, eps, memory.rows, self._hidden, self._bf16
        )  # nothing is added, so x is only read
        return out

    def attention(self, qkv: torch.Tensor, angles: Angles, step: PagedStep) -> torch.Tensor:
        """Rotate q and k, in place, keep k and v, attend: [tokens, heads * dim]."""
        args = step_args(angles, step, self._kernels)
        is_plain = step.cache.dtype == qkv.dtype  # a cache of eight bits is torch's business
        if not is_plain or args.kind != (len(step.slots), self.facts.dim, qkv.dtype):
            return super().attention(qkv, angles, step)
        if step.cache is not self._cache:
            self._set_cache(step.cache)
        # Rows that see nothing, which are padding, are never written and stay zero.
        out, address = _memory(step, qkv).result(self._seen, "seen")
        self._kernels.attend(args.address, self._layer_address, qkv.data_ptr(), address)
        if step.chunks and not self._kernels.attends_to_prompts:
            self._attend_to_prompts(qkv, out, step)
        return out

    def _attend_to_prompts(self, qkv: torch.Tensor, out: torch.Tensor, step: PagedStep) -> None:
        """Attend with the chunks' queries, which are rotated and scaled, in torch's operations."""
        facts, cache = self.facts, step.cache
        states = qkv.view(len(qkv), -1, facts.dim)
        stored = cache.keys[facts.index].flatten(0, 1)
        rows = out.view(len(out), facts.heads, facts.dim)
        for chunk in step.chunks:
            part = slice(chunk.start, chunk.stop)
            keys = stored[step.slot_rows(facts.kv_heads)[part]]
            rows[part] = prefill(
                step, facts.index, chunk, states[part, : facts.heads], keys,
                states[part, -facts.kv_heads :], self._rule,
            )  # fmt: skip

    def before_gate(
        self, x: torch.Tensor, more: torch.Tensor, step: PagedStep
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add to x, in place of `more`, and norm the sum; return both."""
        memory = _memory(step, x)
        out, address = memory.result(self._hidden)
        weight, eps = self._norms[1]
        self._kernels.add_norm(
            x.data_ptr(), more.data_ptr(), weight, address, eps,
            memory.rows, self._hidden, self._bf16,
        )  # fmt: skip
        return more, out

    def gated(self, gate_up: torch.Tensor, step: PagedStep) -> torch.Tensor:
        """Multiply the gate's activation with up; both side by side in [tokens, 2 * width]."""
        width = gate_up.shape[1] // 2
        if not self.is_silu or width % LANES:
            return super().gated(gate_up, step)
        memory = _memory(step, gate_up)
        out, address = memory.result(width)
        self._kernels.silu_mul(gate_up.data_ptr(), address, memory.rows, width, self._bf16)
        return out

    def after(self, x: torch.Tensor, more: torch.Tensor, step: PagedStep) -> torch.Tensor:
        """Add to x, in place of `more`."""
        self._kernels.add_norm(
            x.data_ptr(), more.data_ptr(), None, None, 0.0,
            _memory(step, x).rows, self._hidden, self._bf16,
        )  # fmt: skip
        return more

    def describe(self, layer: DecoderLayerArgs, cache: KVCache) -> None:
        """Fill in what the kernels must know of the layer beside its products."""
        for place, (address, eps) in enumerate(self._norms):
            layer.norms[place], layer.eps[place] = address, eps
        layer.attention = self._layer_args(cache)

    def _set_cache(self, cache: KVCache) -> None:
        self._layer = self._layer_args(cache)
        self._layer_address = ctypes.addressof(self._layer)
        self._cache = cache

    def _layer_args(self, cache: KVCache) -> LayerArgs:
        facts = self.facts
        weight, eps = facts.head_norm or (None, 0.0)
        return LayerArgs(
            keys=cache.keys[facts.index].data_ptr(), values=cache.values[facts.index].data_ptr(),
            norms=weight.data_ptr() if weight is not None else None,
            heads=facts.heads, kv_heads=facts.kv_heads, dim=facts.dim,
            window=facts.rule.window or 0, scale=facts.rule.scale, eps=eps, bf16=self._bf16,
        )  # fmt: skip


class _Angles:
    """The kernels' view of a step with these angles; `address` is where its struct lies."""

    def __init__(self, angles: Angles, step: PagedStep, kernels: Kernels) -> None:
        cos, sin = (one.contiguous() for one in angles)
        self.kind = cos.shape[1], cos.shape[2], cos.dtype
        spans, blocks = _spans(step, with_chunks=kernels.attends_to_prompts)
        self._kept = cos, sin, spans, blocks
        self._args = StepArgs(
            cos=cos.data_ptr(), sin=sin.data_ptr(), slots=step.slots.data_ptr(),
            spans=spans.data_ptr(), blocks=blocks.data_ptr(), rows=len(step.slots),
            num_spans=len(spans), block_size=step.cache.block_size,
        )  # fmt: skip
        self.address = ctypes.addressof(self._args)


def step_args(angles: Angles, step: PagedStep, kernels: Kernels) -> _Angles:
    """What the kernels are told of a step, made once for all layers with these angles."""
    return step.remember(("angles", id(angles[0])), lambda: _Angles(angles, step, kernels))


class _Memory:
    """Memory for a step's results, which its layers overwrite in turn."""

    def __init__(self, like: torch.Tensor) -> None:
        self.rows = len(like)
        self._dtype = like.dtype
        self._results: dict[tuple[int, str], tuple[torch.Tensor, int]] = {}

    def result(self, width: int, use: str = "") -> tuple[torch.Tensor, int]:
        """[tokens, width], zeros at first, with its address; another tensor for another use."""
        if (width, use) not in self._results:
            made = torch.zeros(self.rows, width, dtype=self._dtype)
            self._results[width, use] = made, made.data_ptr()
        return self._results[width, use]


def _memory(step: PagedStep, like: torch.Tensor) -> _Memory:
    return step.remember(("memory",), lambda: _Memory(like))


def _spans(step: PagedStep, *, with_chunks: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`spans` and `blocks` of `struct step`."""
    spans: list[tuple[int, int, int, int]] = []
    blocks: list[torch.Tensor] = []
    begin = 0
    for group in step.groups:
        width = group.blocks.shape[1]
        for place, length in enumerate(group.context_lens.tolist()):
            spans.append((group.start + place, 1, length, begin + place * width))
        blocks.append(group.blocks.flatten())
        begin += group.blocks.numel()
    for chunk in step.chunks if with_chunks else ():
        spans.append((chunk.start, chunk.stop - chunk.start, chunk.context_len, begin))
        blocks.append(chunk.blocks.flatten())
        begin += chunk.blocks.numel()
    if not spans:
        return torch.zeros(0, 4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    return torch.tensor(spans), torch.cat(blocks) if len(blocks) > 1 else blocks[0]


def fits_cpu_kernels(facts: LayerFacts) -> bool:
    """Whether the kernels can do what a layer does."""
    weights = [weight for weight, _ in facts.norms]
    if facts.head_norm is not None:
        weights.append(facts.head_norm[0])
    return (
        all(can_norm(one) for one, _ in facts.norms)
        and all(one.device.type == "cpu" and one.is_contiguous() for one in weights)
        and len({one.dtype for one in weights}) == 1
        and facts.dim % LANES == 0
        and facts.dim <= MAX_DIM
        and facts.rule.softcap is None
    )
