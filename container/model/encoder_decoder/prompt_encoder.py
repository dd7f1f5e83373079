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
        outputs = self._find(key)
        if outputs is None:
            outputs = encode(self._module, list(key))
            self._keep(key, outputs)
        elif outputs.is_cuda:
            outputs.record_stream(torch.cuda.current_stream(outputs.device))
        return outputs[sequence.encoder.num_cached :]

    def _prepare(self, sequence: Sequence, encodes: bool) -> PromptLayout:
        key = _key(sequence)
        if encodes and self._find(key) is None:
            with own_stream(self._module.device):
                outputs = encode(self._module, list(key))
            # Not before the stream has computed them: another sequence of this prompt may read.
            self._keep(key, outputs)
        return PromptLayout()

    def _find(self, key: tuple[int, ...]) -> torch.Tensor | None:
        """Return a prompt's outputs if they wait here, and note their use."""
        with self._lock:
            if key in self._waiting:
                self._waiting.move_to_end(key)
            return self._waiting.get(key)

    def _keep(self, key: tuple[int, ...], outputs: torch.Tensor) -> None:
        with self._lock:
            self._waiting[key] = outputs
            self._waiting.move_to_end(key)
            while len(self._waiting) > 1 and self._num_bytes() > MAX_BYTES:
                self._waiting.popitem(last=False)

    def _num_bytes(self) -> int:
        return sum(outputs.nbytes for outputs in self._waiting.values())


def _key(sequence: Sequence) -> tuple[int, ...]:
    return tuple(sequence.token_ids[: sequence.encoder.length])
