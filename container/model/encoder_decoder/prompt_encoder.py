"""Encodes prompts in another thread, while the engine runs steps.

One prompt at a time; the outputs wait here for the step that begins the sequence, least recently
used first out. A step that misses them encodes the prompt itself.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from transformers import PreTrainedModel

from container.engine.model_runner import PromptLayout
from container.engine.sequence import Sequence
from container.model.async_copy import own_stream
from container.model.encoder_decoder.decoder import encode
from container.model.encoder_outputs import EncoderOutputs


class PromptEncoder:
    """Runs the encoder of a model; several sequences of a request share its outputs."""

    def __init__(self, module: PreTrainedModel) -> None:
        self._module = module
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._outputs: EncoderOutputs[tuple[int, ...], torch.Tensor] = EncoderOutputs(
            lambda outputs: outputs.nbytes
        )

    def prepare(self, sequence: Sequence, *, encodes: bool) -> "Future[PromptLayout]":
        """Encode a prompt in the thread, if `encodes`."""
        return self._thread.submit(self._prepare, sequence, encodes)

    def outputs_of(self, sequence: Sequence) -> torch.Tensor:
        """Return the outputs for the tokens that are not cached, [tokens, width]."""
        key = _key(sequence)
        outputs = self._outputs.find(key)
        if outputs is None:
            outputs = encode(self._module, list(key))
            self._outputs.add(key, outputs)
        elif outputs.is_cuda:
            outputs.record_stream(torch.cuda.current_stream(outputs.device))
        return outputs[sequence.encoder.num_cached :]

    def _prepare(self, sequence: Sequence, encodes: bool) -> PromptLayout:
        key = _key(sequence)
        if encodes and self._outputs.find(key) is None:
            with own_stream(self._module.device):
                outputs = encode(self._module, list(key))
            # Not before the stream has computed them: another sequence of this prompt may read.
            self._outputs.add(key, outputs)
        return PromptLayout()


def _key(sequence: Sequence) -> tuple[int, ...]:
    return tuple(sequence.token_ids[: sequence.encoder.length])
