"""Multi-head latent attention (DeepSeek-AI, 2024) over a cache of latents.

Models with it expand one latent of each token, [rank], to the keys and values of all heads, by a
matrix K and a matrix V for each head; a part of the key, [rope], is the same for all heads:

    key = (K latent, rope)      value = V latent

Since q (K latent) = (q K) latent, queries are multiplied by K and results by V, and the cache holds
the latents alone: attention with one KV head, whose values are the first numbers of its keys.
transformers' models expand in a method `expand_kv`, which an object of this module replaces.
"""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import nn

# Rows of a batched GEMM, all of one size, so that a row's bits do not depend on the others.
ROWS = 16
# Attention implementations under which latents stay as they are begin with this.
PAGED = "paged"


class _Matrices(NamedTuple):
    """`keys` is [heads, keys, rank] and `values` [heads, rank, values]."""

    keys: torch.Tensor
    values: torch.Tensor


class LatentAttention:
    """Replaces `expand_kv` of one attention module."""

    def __init__(self, module: nn.Module, rank: int, rope: int) -> None:
        """Find the matrices, for latents of these sizes. Raises ValueError if there are none."""
        self._module = module
        self._expand_kv: Any = module.expand_kv
        self._rank, self._rope = rank, rope
        self._cached: tuple[list[nn.Module], _Matrices] | None = None
        # The layers that expand latents.
        self.expanding: list[nn.Module] = []
        parameter = next(module.parameters())
        hooks = [part.register_forward_hook(self._record) for part in module.children()]
        matrices = self._compute(parameter.device, parameter.dtype)
        for hook in hooks:
            hook.remove()
        self.value_dim = matrices.values.shape[-1]

    def __call__(
        self, latents: torch.Tensor, rope: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of one head, [1, 1, tokens, ...], or expand without paging."""
        config: Any = self._module.config
        if not config._attn_implementation.startswith(PAGED):
            expanded: tuple[torch.Tensor, torch.Tensor] = self._expand_kv(latents, rope)
            return expanded
        return torch.cat([latents, rope], -1), latents

    def absorb(self, query: torch.Tensor) -> torch.Tensor:
        """Return queries for latents, [tokens, heads, rank + rope], of those for keys."""
        rows, rope = query.split([query.shape[-1] - self._rope, self._rope], -1)
        matrices = self._matrices(query)
        return torch.cat([_multiply(rows, matrices.keys), rope], -1)

    def expand(self, out: torch.Tensor) -> torch.Tensor:
        """Return attention's results, [tokens, heads, values], of those for latents."""
        return _multiply(out, self._matrices(out).values)

    def _record(self, part: nn.Module, *_: object) -> None:
        self.expanding.append(part)

    def _matrices(self, like: torch.Tensor) -> _Matrices:
        """Return the matrices; they are computed again when the module's parts were replaced."""
        parts = list(self._module.children())
        if any("forward" in vars(part) for part in parts):  # weights in another form for one call
            return self._compute(like.device, like.dtype)
        if self._cached is None or self._cached[0] != parts:
            self._cached = parts, self._compute(like.device, like.dtype)
        return self._cached[1]

    def _compute(self, device: torch.device, dtype: torch.dtype) -> _Matrices:
        """Expand the unit vectors."""
        latents = torch.eye(self._rank, dtype=dtype, device=device)[None, None]
        rope = torch.ones(1, 1, self._rank, self._rope, dtype=dtype, device=device)
        keys, values = self._expand_kv(latents, rope)
        if not (keys[..., -self._rope :] == 1).all():
            raise ValueError("its keys do not end with the part of all heads")
        by_key = keys[0, :, :, : -self._rope].transpose(1, 2).contiguous()
        return _Matrices(by_key, values[0].contiguous())


def attach(module: nn.Module, undo: contextlib.ExitStack) -> None:
    """Let the attention modules of a model that have latents keep them; `undo` restores them."""
    for part in module.modules():
        config: Any = getattr(part, "config", None)
        if not callable(getattr(part, "expand_kv", None)) or not hasattr(part, "layer_idx"):
            continue
        latents = LatentAttention(part, config.kv_lora_rank, config.qk_rope_head_dim)
        vars(part)["expand_kv"] = latents
        undo.callback(delattr, part, "expand_kv")
        for layer in latents.expanding:
            # An adapter's update of these would have no effect, so adapters may not find them, by
            # name once they are packed.
            name = vars(layer).pop("qualified_name", "")
            vars(layer)["is_absorbed"] = True
            undo.callback(delattr, layer, "is_absorbed")
            undo.callback(setattr, layer, "qualified_name", name)


def latents_of(module: nn.Module) -> LatentAttention | None:
    """Return what an attention module's latents need, if it keeps them."""
    expand = vars(module).get("expand_kv")
    return expand if isinstance(expand, LatentAttention) else None


def blank_output(module: nn.Module, query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return zeros in the shape of an attention function's output, [1, tokens, heads, dim]."""
    latents = latents_of(module)
    dim = value.shape[-1] if latents is None else latents.value_dim
    return query.new_zeros(1, query.shape[2], query.shape[1], dim)


def _multiply(rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Multiply each head's rows, [tokens, heads, in], by its matrix, [heads, in, out]."""
    if rows.is_cuda:  # a GPU is fast with many rows at once, and promises no such bits
        return torch.bmm(rows.transpose(0, 1), matrices).transpose(0, 1)
    count = len(rows)
    padded = nn.functional.pad(rows, (0, 0, 0, 0, 0, -count % ROWS)).transpose(0, 1)
    tiles = [torch.bmm(tile, matrices) for tile in padded.split(ROWS, 1)]
    return torch.cat(tiles, 1).transpose(0, 1)[:count]
