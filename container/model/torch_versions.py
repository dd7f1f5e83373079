"""Where torch's releases differ: the image has 2.13, and an own image may have 2.11."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist


def empty_host_cache() -> None:
    """Give back pinned host memory that no tensor has."""
    empty: Any = getattr(torch.accelerator, "empty_host_cache", None)  # since 2.12
    (empty or torch._C._host_emptyCache)()


def all_gather(out: torch.Tensor, shard: torch.Tensor) -> None:
    """Gather the ranks' shards one below the other in `out`."""
    gather: Any = getattr(dist, "all_gather_single", None)  # the name since 2.13
    (gather or dist.all_gather_into_tensor)(out, shard)


@cache
def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function takes a keyword argument of this name in this release."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )
