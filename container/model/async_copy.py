"""Asynchronous copies between the host and a device.

A copy from pageable memory blocks until the device has finished all earlier work. A copy from
pinned memory is queued, like a kernel; torch keeps the pinned memory until the copy is done.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

Numbers = list[int] | list[float] | list[list[int]] | np.ndarray[Any, Any]


def to_device(
    numbers: Numbers, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Create a device tensor from host numbers, queued behind the device's earlier work."""
    # A numpy array is not copied here, so the caller must not change it afterwards.
    return send(torch.as_tensor(numbers, dtype=dtype), device)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to another device, queued behind that device's earlier work."""
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    # A copy to the host blocks, else it could be read before it arrives; see `AsyncHostCopy`.
    return tensor.to(device, non_blocking=device.type != "cpu")


class AsyncHostCopy:
    """Asynchronous copies to the host: add some, record an event after them, wait for it."""

    def __init__(self) -> None:
        self._event: torch.cuda.Event | None = None

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Begin a copy to the host; the returned tensor may be read after `wait`."""
        return tensor.to("cpu", non_blocking=True)

    def record(self, device: torch.device) -> None:
        """Record the event after the last copy."""
        if device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Wait for the copies, but not for work queued after them."""
        if self._event is not None:
            self._event.synchronize()


def take_rows(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Select rows, in ascending order; returns the tensor itself if all rows are selected."""
    if len(rows) == len(logits):
        return logits
    return logits.index_select(0, to_device(rows, logits.device, torch.int64))


@contextlib.contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Queue kernels of this context beside those of steps, and wait for them."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
