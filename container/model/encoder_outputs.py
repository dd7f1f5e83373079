"""Holds the outputs of an encoder until a step takes them, within a limit of memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

# Most memory of outputs that wait for their steps.
MAX_BYTES = 256 * 2**20

K = TypeVar("K")
V = TypeVar("V")


class EncoderOutputs(Generic[K, V]):
    """Outputs by key, least recently used first out; the newest one always stays.

    `num_bytes` is the memory of one. Several threads may use it.
    """

    def __init__(self, num_bytes: Callable[[V], int]) -> None:
        self._num_bytes = num_bytes
        self._lock = threading.Lock()
        self._outputs: OrderedDict[K, V] = OrderedDict()

    def find(self, key: K) -> V | None:
        """Return the outputs of this key, and note their use; None if there are none."""
        with self._lock:
            if key in self._outputs:
                self._outputs.move_to_end(key)
            return self._outputs.get(key)

    def add(self, key: K, outputs: V) -> None:
        """Add outputs, in the place of earlier ones of this key."""
        with self._lock:
            self._outputs[key] = outputs
            self._outputs.move_to_end(key)
            while len(self._outputs) > 1 and self._total_bytes() > MAX_BYTES:
                self._outputs.popitem(last=False)

    def _total_bytes(self) -> int:
        return sum(self._num_bytes(outputs) for outputs in self._outputs.values())
