"""Sharding: a model of which each rank has a share of every layer (Shoeybi et al., 2019).

transformers decides what is split and how (a model's `tp_plan`) and loads only this rank's shares.
What it leaves are DTensors behind wrapped forward functions. Here they become plain tensors of this
rank, so that all else (packing, paged attention, eight bits) sees ordinary layers:

    column-wise: y_r = x W_r'           each rank computes some of the outputs
    row-wise:    y = sum_r(x_r W_r')    each rank has some of the inputs; one sum over the ranks

With gloo the shares are gathered and added in float32 in one order, since its own sum takes them in
an order that depends on the size; so on a CPU a row's bits do not depend on the rest of the batch.
NCCL sums as it likes, and so do the layers of experts, which keep transformers' own form.
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

KEPT = {
    "all_reduce", "local_params", "mla_kv_a_proj", "moe_tp_experts", "packed_colwise",
    "packed_rowwise", "replicate", "replicated_with_grad_allreduce",
}  # fmt: skip
PAGED_LAYERS = {"full_attention", "sliding_attention"}


def why_not_sharded(config: PretrainedConfig, ranks: int) -> str | None:
    """Why a model's layers cannot be split over so many ranks; None if they can."""
    text = text_config(config)
    if config.is_encoder_decoder:
        return "it has an encoder"
    if text is not config:
        return "it has parts beside its language model"
    plan: dict[str, str] = getattr(text, "base_model_tp_plan", None) or {}
    if not plan:
        return f"transformers has no plan for splitting a {config.model_type} model"
    if unknown := set(plan.values()) - _MAKERS.keys() - KEPT:
        return f"its plan for splitting has parts that are not known here ({sorted(unknown)[0]})"
    if kinds := set(getattr(text, "layer_types", None) or ()) - PAGED_LAYERS:
        return f"it has layers that are not paged ({sorted(kinds)[0]})"
    if getattr(config, "quantization_config", None) is not None:
        return "it is quantized"
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if heads % ranks or kv_heads % ranks:
        return f"{heads} heads over {kv_heads} KV heads cannot be divided by {ranks}"
    return None


def is_tensor_parallel(model: PreTrainedModel) -> bool:
    """Whether each rank has a share of its layers."""
    return (getattr(model, "_tp_size", None) or 1) > 1


@torch.no_grad()
def make_plain(model: PreTrainedModel) -> None:
    """Replace the layers that transformers has split by plain ones, in place."""
    styles: dict[str, str] = model.tp_plan
    for name, module in list(model.named_modules()):
        style = styles.get(replace_layer_number_by_wildcard(name))
        make = _MAKERS.get(style) if style else None
        if make is None or type(module) not in (nn.Linear, nn.Embedding):
            continue
        model.set_submodule(name, make(module))


def sum_over_ranks(share: torch.Tensor) -> torch.Tensor:
    """Add up what the ranks have computed; every rank gets the same bits."""
    if share.device.type != "cpu":
        dist.all_reduce(share)
        return share
    return gather_over_ranks(share).float().sum(0).to(share.dtype)


def gather_over_ranks(share: torch.Tensor) -> torch.Tensor:
    """Collect what the ranks have computed as [ranks, ...]."""
    out = share.new_empty(dist.get_world_size(), *share.shape)
    dist.all_gather_single(out.flatten(0, 1), share.contiguous())
    return out


def share_first(tensor: torch.Tensor) -> None:
    """Give all ranks what rank 0 has, in place."""
    dist.broadcast(tensor, 0)


def least_over_ranks(number: int) -> int:
    """The smallest of the ranks' numbers."""
    device = "cpu" if dist.get_backend() == "gloo" else "cuda"
    least = torch.tensor(number, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


class RowwiseLinear(nn.Module):
    """A linear layer of whose inputs, [..., in_features / ranks], each rank has a share.

    With `cuts`, every rank is given all inputs and takes its share of them.
    """

    def __init__(
        self, product: nn.Linear, bias: torch.Tensor | None, *, cuts: bool = False
    ) -> None:
        super().__init__()
        self.product = product
        self.cuts = cuts
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the whole sum, [..., out_features]."""
        if self.cuts:
            rows = rows.chunk(dist.get_world_size(), -1)[dist.get_rank()]
        out = sum_over_ranks(self.product(rows))
        return out if self.bias is None else out + self.bias


class GatheredLinear(nn.Module):
    """A linear layer of whose outputs each rank computes a share, and gets all."""

    def __init__(self, product: nn.Linear, out_features: int) -> None:
        super().__init__()
        self.product = product
        self.out_features = out_features

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features] to [..., out_features]."""
        share = self.product(rows)
        # The last share may be shorter; gathering wants them all of one size.
        width = -(-self.out_features // dist.get_world_size())
        share = nn.functional.pad(share, (0, width - share.shape[-1]))
        whole = gather_over_ranks(share).movedim(0, -2).flatten(-2)
        return whole[..., : self.out_features]


class ShardedEmbedding(nn.Module):
    """An embedding of whose rows each rank has a share, from id `first` on."""

    def __init__(self, weight: torch.Tensor, first: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.first = first

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up [...] as [..., dim]; one share is not zero."""
        local = ids - self.first
        is_here = (local >= 0) & (local < len(self.weight))
        rows = nn.functional.embedding(local.where(is_here, 0), self.weight)
        return sum_over_ranks(rows * is_here[..., None])


def _plain(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return tensor.to_local().contiguous() if isinstance(tensor, DTensor) else tensor


def _local(linear: nn.Linear, *, with_bias: bool) -> nn.Linear:
    """Make a plain linear layer of this rank's share."""
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


# By transformers' names for the styles; those of KEPT keep transformers' own form.
_MAKERS: dict[str, Any] = {
    "colwise": _colwise,
    "rowwise": _rowwise,
    "rowwise_split_input": partial(_rowwise, cuts=True),
    "rowwise_rep": partial(_rowwise, cuts=True),
    "colwise_gather_output": _gathered,
    "colwise_rep": _gathered,
    "embedding_rowwise": _embedding,
}
