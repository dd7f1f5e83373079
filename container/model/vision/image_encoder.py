"""Encodes the images of prompts in another thread, while the engine runs steps.

One prompt at a time; the inputs wait here for the steps that compute the prompt, least recently
used first out. A step that misses them encodes the images itself.
"""

from concurrent.futures import Future, ThreadPoolExecutor

from container.engine.model_runner import PromptLayout
from container.engine.sequence import RequestKey, Sequence
from container.messages.images import ImageTensors
from container.model.async_copy import own_stream
from container.model.encoder_outputs import EncoderOutputs
from container.model.vision.language_model import LanguageModel, shift_of, typed_spans
from container.model.vision.prompt_inputs import PromptInputs


class ImageEncoder:
    """Reads prompts with images; `is_bidirectional`: the tokens of an image see each other."""

    def __init__(self, language_model: LanguageModel, *, is_bidirectional: bool) -> None:
        self._language_model = language_model
        self._is_bidirectional = is_bidirectional
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._outputs: EncoderOutputs[RequestKey, tuple[ImageTensors, PromptInputs]] = (
            EncoderOutputs(lambda output: output[1].num_bytes)
        )

    def prepare(self, sequence: Sequence, *, encodes: bool) -> "Future[PromptLayout]":
        """Find the layout of a prompt, and encode its images if `encodes`, in the thread."""
        return self._thread.submit(self._prepare, sequence, encodes)

    def inputs_of(self, sequence: Sequence) -> PromptInputs:
        """Return the inputs of a prompt, encoding its images if that has not been done."""
        images, inputs = self._outputs.find(sequence.key) or (None, None)
        if inputs is None or images is not sequence.images:
            inputs = self._read(sequence)
        inputs.keep_for_stream()
        return inputs

    def _prepare(self, sequence: Sequence, encodes: bool) -> PromptLayout:
        images = sequence.images
        if encodes:
            with own_stream(self._language_model.module.device):
                positions = self._read(sequence).positions
        else:
            ids = sequence.token_ids[: sequence.prompt_len]
            positions = self._language_model.positions(ids, images)
        spans = tuple(typed_spans(images)) if self._is_bidirectional else ()
        return PromptLayout(shift_of(positions), spans)

    def _read(self, sequence: Sequence) -> PromptInputs:
        ids = sequence.token_ids[: sequence.prompt_len]
        inputs = self._language_model.read_prompt(ids, sequence.images)
        self._outputs.add(sequence.key, (sequence.images, inputs))
        return inputs
