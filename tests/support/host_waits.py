"""Finds operations that make the host wait for a device, without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class HostWaits(AssertionError):
    """An operation for which the host would wait for the device."""


class Watched(TorchDispatchMode):
    """Refuses operations that need the device's values on the host; records the rest and copies.

    Logits on the device "meta" have no values, so that every operation that reads them fails.
    """

    REFUSED = frozenset(
        {
            "_local_scalar_dense",
            "_unique2",
            "bincount",
            "equal",
            "is_nonzero",
            "item",
            "masked_select",
            "nonzero",
            "nonzero_static",
            "scalar_tensor",
            "unique_consecutive",
            "unique_dim",
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.copies: list[dict[str, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        is_mask = name.startswith("index") and any(
            tensor.dtype == torch.bool for tensor in tensors[1:]
        )
        # With an int it is a copy; with a tensor its sum is the size of the result.
        is_counted = name == "repeat_interleave" and "Tensor" in func._overloadname
        if name in self.REFUSED or is_mask or is_counted:
            raise HostWaits(name)
        result = func(*args, **kwargs)
        devices = {tensor.device.type for tensor in tensors}
        of_result = {one.device.type for one in tree_leaves(result) if hasattr(one, "device")}
        if len(devices | of_result) > 1:
            if name not in {"_to_copy", "copy_", "to"} or "cpu" in of_result:
                raise HostWaits(f"{name} from {devices} to {of_result}")
            self.copies.append(kwargs)
        self.names.append(name)
        return result


class WatchedCalls(TorchFunctionMode):
    """Refuses reads that are no operations: values as Python's, lists as indices or tensors."""

    REFUSED = frozenset(
        {"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}
    )

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        is_moved_list = name in {"tensor", "as_tensor"} and kwargs.get("device") is not None
        is_listed = name in {"__getitem__", "__setitem__"} and any(
            isinstance(one, list) for one in (args[1] if isinstance(args[1], tuple) else args[1:2])
        )
        if name in self.REFUSED or is_moved_list or is_listed:
            raise HostWaits(name)
        return func(*args, **kwargs)


@contextmanager
def watched() -> Iterator[Watched]:
    with WatchedCalls(), Watched() as operations:
        yield operations
