"""Encodes the images of prompts in another thread, while the engine runs steps.

One prompt at a time; the inputs wait here for the steps that compute the prompt, least recently
used first out. A step that misses them encodes the images itself.
"""

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from container.engine.model_runner import PromptLayout
from container.engine.sequence import RequestKey, Sequence
from container.messages.images import ImageTensors
from container.model.async_copy import own_stream
from container.model.vision.language_model import LanguageModel, shift_of, typed_spans
from container.model.vision.prompt_inputs import PromptInputs

# Most memory of inputs that wait for their steps.
MAX_BYTES = 256 * 2**20


class ImageEncoder:
    """Reads prompts with images; `is_two_way`: the tokens of an image see each other."""

    def __init__(self, language_model: LanguageModel, *, is_two_way: bool) -> None:
        self._language_model = language_model
        self._is_two_way = is_two_way
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._lock = threading.Lock()
        self._waiting: OrderedDict[RequestKey, tuple[ImageTensors, PromptInputs]] = OrderedDict()

    def prepare(self, sequence: Sequence, *, encodes: bool) -> "Future[PromptLayout]":
        """Find the layout of a prompt, and encode its images if `encodes`, in the thread."""
        return self._thread.submit(self._prepare, sequence, encodes)

    def inputs_of(self, sequence: Sequence) -> PromptInputs:
        """Return the inputs of a prompt, encoding its images if that has not been done."""
        with self._lock:
            images, inputs = self._waiting.get(sequence.key, (None, None))
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
        spans = tuple(typed_spans(images)) if self._is_two_way else ()
        return PromptLayout(shift_of(positions), spans)

    def _read(self, sequence: Sequence) -> PromptInputs:
        ids = sequence.token_ids[: sequence.prompt_len]
        inputs = self._language_model.read_prompt(ids, sequence.images)
        with self._lock:
            self._waiting[sequence.key] = sequence.images, inputs
            self._waiting.move_to_end(sequence.key)
            while len(self._waiting) > 1 and self._num_bytes() > MAX_BYTES:
                self._waiting.popitem(last=False)
        return inputs

    def _num_bytes(self) -> int:
        return sum(inputs.num_bytes for _, inputs in self._waiting.values())
