"""Tensor parallelism: each rank has a shard of every layer (Shoeybi et al., 2019).

transformers decides how each layer is sharded (a model's `tp_plan`) and loads only this rank's
shards, as DTensors behind wrapped forward functions. This module converts them to plain tensors, so
that packing, paged attention and int8 weights work on ordinary layers:

    column-wise: y_r = x W_r'           each rank computes some of the outputs
    row-wise:    y = sum_r(x_r W_r')    each rank has some of the inputs; one sum over the ranks

With gloo the shards are gathered and added in float32 in a fixed order, since the order of gloo's
all-reduce depends on the size; so on a CPU a row's bits do not depend on the rest of the batch.
NCCL's order is not controlled, nor is that of expert layers, which keep transformers' form.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard

from container.model.hf_config import text_config
from container.model.torch_versions import all_gather

UNCHANGED_STYLES = {
    "all_reduce", "local_params", "mla_kv_a_proj", "moe_tp_experts", "packed_colwise",
    "packed_rowwise", "replicate", "replicated_with_grad_allreduce",
}  # fmt: skip
PAGED_LAYERS = {"chunked_attention", "full_attention", "sliding_attention"}


def why_not_sharded(config: PretrainedConfig, ranks: int) -> str | None:
    """Return why a model cannot be sharded over `ranks` ranks; None if it can."""
    text = text_config(config)
    if config.is_encoder_decoder:
        return "it has an encoder"
    if text is not config:
        return "it has parts other than its language model"
    plan: dict[str, str] = getattr(text, "base_model_tp_plan", None) or {}
    if not plan:
        return f"transformers has no plan for splitting a {config.model_type} model"
    if unknown := set(plan.values()) - _MAKERS.keys() - UNCHANGED_STYLES:
        return f"its plan for splitting has an unsupported style ({sorted(unknown)[0]})"
    if layer_types := set(getattr(text, "layer_types", None) or ()) - PAGED_LAYERS:
        return f"it has layers that are not paged ({sorted(layer_types)[0]})"
    if getattr(config, "quantization_config", None) is not None:
        return "it is quantized"
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if heads % ranks or kv_heads % ranks:
        return f"{heads} heads over {kv_heads} KV heads cannot be divided by {ranks}"
    return None


def is_tensor_parallel(model: PreTrainedModel) -> bool:
    """Whether the model's layers are sharded over ranks."""
    return (getattr(model, "_tp_size", None) or 1) > 1


@torch.no_grad()
def make_plain(model: PreTrainedModel) -> None:
    """Replace the layers that transformers has sharded by plain ones, in place."""
    styles: dict[str, str] = model.tp_plan
    for name, module in list(model.named_modules()):
        style = styles.get(replace_layer_number_by_wildcard(name))
        make = _MAKERS.get(style) if style else None
        if make is None or type(module) not in (nn.Linear, nn.Embedding):
            continue
        model.set_submodule(name, make(module))


def sum_over_ranks(partial_sum: torch.Tensor) -> torch.Tensor:
    """Sum the ranks' partial results; every rank gets the same bits."""
    if partial_sum.device.type != "cpu":
        dist.all_reduce(partial_sum)
        return partial_sum
    return gather_over_ranks(partial_sum).float().sum(0).to(partial_sum.dtype)


def gather_over_ranks(shard: torch.Tensor) -> torch.Tensor:
    """Gather the ranks' results as [ranks, ...]."""
    out = shard.new_empty(dist.get_world_size(), *shard.shape)
    all_gather(out.flatten(0, 1), shard.contiguous())
    return out


def broadcast_first(tensor: torch.Tensor) -> None:
    """Broadcast rank 0's tensor to all ranks, in place."""
    dist.broadcast(tensor, 0)


def least_over_ranks(number: int) -> int:
    """Return the smallest of the ranks' numbers."""
    device = "cpu" if dist.get_backend() == "gloo" else "cuda"
    least = torch.tensor(number, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


class RowwiseLinear(nn.Module):
    """A row-parallel linear layer: each rank has a shard of the inputs.

    Inputs are [..., in_features / ranks]. With `cuts`, every rank gets all inputs, [...,
    in_features], and takes its shard of them.
    """

    def __init__(
        self, product: nn.Linear, bias: torch.Tensor | None, *, cuts: bool = False
    ) -> None:
        super().__init__()
        self.product = product
        self.cuts = cuts
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks, [..., out_features]."""
        if self.cuts:
            rows = rows.chunk(dist.get_world_size(), -1)[dist.get_rank()]
        out = sum_over_ranks(self.product(rows))
        return out if self.bias is None else out + self.bias


class GatheredLinear(nn.Module):
    """A column-parallel linear layer that gathers the outputs of all ranks."""

    def __init__(self, product: nn.Linear, out_features: int) -> None:
        super().__init__()
        self.product = product
        self.out_features = out_features

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features] to [..., out_features]."""
        shard = self.product(rows)
        # The last shard may be smaller; gathering needs equal sizes.
        width = -(-self.out_features // dist.get_world_size())
        shard = nn.functional.pad(shard, (0, width - shard.shape[-1]))
        whole = gather_over_ranks(shard).movedim(0, -2).flatten(-2)
        return whole[..., : self.out_features]


class ShardedEmbedding(nn.Module):
    """A vocabulary-parallel embedding: each rank has the rows from id `first` on."""

    def __init__(self, weight: torch.Tensor, first: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.first = first

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up ids [...] as [..., dim]; all ranks but one contribute zeros."""
        local = ids - self.first
        is_here = (local >= 0) & (local < len(self.weight))
        rows = nn.functional.embedding(local.where(is_here, 0), self.weight)
        return sum_over_ranks(rows * is_here[..., None])


def _plain(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return tensor.to_local().contiguous() if isinstance(tensor, DTensor) else tensor


def _local(linear: nn.Linear, *, with_bias: bool) -> nn.Linear:
    """Create a plain linear layer from this rank's shard."""
    weight, bias = _plain(linear.weight), _plain(linear.bias) if with_bias else None
    assert weight is not None
    shard = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    shard.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        shard.bias = nn.Parameter(bias, requires_grad=False)
    return shard


def _colwise(linear: nn.Linear) -> nn.Module:
    return _local(linear, with_bias=True)


def _rowwise(linear: nn.Linear, *, cuts: bool = False) -> nn.Module:
    return RowwiseLinear(_local(linear, with_bias=False), _plain(linear.bias), cuts=cuts)


def _gathered(linear: nn.Linear) -> nn.Module:
    return GatheredLinear(_local(linear, with_bias=True), linear.weight.shape[0])


def _embedding(embedding: nn.Embedding) -> nn.Module:
    weight = _plain(embedding.weight)
    assert weight is not None
    width = -(-embedding.weight.shape[0] // dist.get_world_size())
    return ShardedEmbedding(weight, dist.get_rank() * width)


# By transformers' style name; the styles in UNCHANGED_STYLES keep transformers' own form.
_MAKERS: dict[str, Any] = {
    "colwise": _colwise,
    "rowwise": _rowwise,
    "rowwise_split_input": partial(_rowwise, cuts=True),
    "rowwise_rep": partial(_rowwise, cuts=True),
    "colwise_gather_output": _gathered,
    "colwise_rep": _gathered,
    "embedding_rowwise": _embedding,
}
