"""Encodes prompts in another thread, while the engine runs steps.

One prompt at a time; the outputs wait here for the step that begins the sequence, least recently
used first out. A step that misses them encodes the prompt itself.
"""

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from transformers import PreTrainedModel

from container.engine.model_runner import PromptLayout
from container.engine.sequence import Sequence
from container.model.async_copy import own_stream
from container.model.encoder_decoder.decoder import encode

# Most memory of outputs that wait for their steps.
MAX_BYTES = 256 * 2**20


class PromptEncoder:
    """Runs the encoder of a model; several sequences of a request share its outputs."""

    def __init__(self, module: PreTrainedModel) -> None:
        self._module = module
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._lock = threading.Lock()
        self._waiting: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()

    def prepare(self, sequence: Sequence, *, encodes: bool) -> "Future[PromptLayout]":
        """Encode a prompt in the thread, if `encodes`."""
        return self._thread.submit(self._prepare, sequence, encodes)

    def outputs_of(self, sequence: Sequence) -> torch.Tensor:
        """Return the outputs for the tokens that are not cached, [tokens, width]."""
        key = _key(sequence)
        with self._lock:
            outputs = self._waiting.get(key)
        if outputs is None:
            outputs = self._encode(key)
        elif outputs.is_cuda:
            outputs.record_stream(torch.cuda.current_stream(outputs.device))
        return outputs[sequence.encoder.num_cached :]

    def _prepare(self, sequence: Sequence, encodes: bool) -> PromptLayout:
        if encodes:
            with own_stream(self._module.device):
                self._encode(_key(sequence))
        return PromptLayout()

    def _encode(self, key: tuple[int, ...]) -> torch.Tensor:
        outputs = encode(self._module, list(key))
        with self._lock:
            self._waiting[key] = outputs
            self._waiting.move_to_end(key)
            while len(self._waiting) > 1 and self._num_bytes() > MAX_BYTES:
                self._waiting.popitem(last=False)
        return outputs

    def _num_bytes(self) -> int:
        return sum(outputs.nbytes for outputs in self._waiting.values())


def _key(sequence: Sequence) -> tuple[int, ...]:
    return tuple(sequence.token_ids[: sequence.encoder.length])
