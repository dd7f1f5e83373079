"""Copies between the host and a device that nobody waits for.

A copy from ordinary memory makes torch wait for all that the device has to do before it. From
pinned memory it is queued, like a kernel; torch keeps such memory until the copy is over.
"""

from typing import Any

import numpy as np
import torch

Numbers = list[int] | list[float] | list[list[int]] | np.ndarray[Any, Any]


def to_device(
    numbers: Numbers, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Make a tensor of numbers from the host on a device, behind what the device has to do."""
    # A view of an array stays one; the caller does not change what it has handed over.
    return send(torch.as_tensor(numbers, dtype=dtype), device)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to another device, behind what that has to do."""
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    # What comes to the host would be read before it is there; `AsyncHostCopy` is for that.
    return tensor.to(device, non_blocking=device.type != "cpu")


class AsyncHostCopy:
    """Copies on their way to the host: start some, seal them, wait for all."""

    def __init__(self) -> None:
        self._event: torch.cuda.Event | None = None

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Begin a copy to the host; what is returned may be read after `wait`."""
        return tensor.to("cpu", non_blocking=True)

    def record(self, device: torch.device) -> None:
        """No copy follows."""
        if device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Wait for the copies, and for nothing that was queued after them."""
        if self._event is not None:
            self._event.synchronize()


def take_rows(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Some rows, in ascending order; all of them are the same tensor, not a copy."""
    if len(rows) == len(logits):
        return logits
    return logits.index_select(0, to_device(rows, logits.device, torch.int64))
