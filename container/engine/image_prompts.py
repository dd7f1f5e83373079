"""Requests whose images another thread reads before the scheduler gets them."""

from concurrent.futures import Future

from container.engine.model_runner import ImageLayout, ModelRunner
from container.engine.scheduler import MAX_PROMPT_LOGPROBS, Scheduler
from container.engine.sequence import Sequence
from container.errors import InvalidParameter


class ImagePrompts:
    """Owns the requests whose images are being read."""

    def __init__(self, runner: ModelRunner, scheduler: Scheduler) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._reading: list[tuple[Future[ImageLayout], list[Sequence]]] = []

    @property
    def is_reading(self) -> bool:
        """Whether a request waits for its images."""
        return bool(self._reading)

    def begin(self, sequences: list[Sequence]) -> bool:
        """Begin to read the images of a request; False if there is nothing to wait for."""
        first = sequences[0]
        if not first.images:
            return False
        is_cached = self._scheduler.kv_cache.has_cached(first, first.image_end)
        layout = self._runner.prepare_images(first, encodes=not is_cached)
        if layout is None:
            return False
        self._reading.append((layout, sequences))
        return True

    def take_read(self) -> list[tuple[list[Sequence], BaseException | None]]:
        """Return the requests whose images have been read since the last call, or their errors."""
        done = [entry for entry in self._reading if entry[0].done()]
        # Those that end meanwhile are for the next call, so `done` is not asked again.
        self._reading = [entry for entry in self._reading if entry not in done]
        return [(sequences, self._lay_out(layout, sequences)) for layout, sequences in done]

    def _lay_out(
        self, done: "Future[ImageLayout]", sequences: list[Sequence]
    ) -> BaseException | None:
        """Give sequences their layout; return why they cannot run."""
        if (error := done.exception()) is not None:
            return error
        layout = done.result()
        for sequence in sequences:
            sequence.position_shift = layout.position_shift
            sequence.whole_spans = layout.whole_spans
        longest = max((stop - start for start, stop in layout.whole_spans), default=0)
        limit = self._scheduler.max_batch_tokens
        if longest > limit:
            return InvalidParameter(
                f"an image has {longest} tokens, which one step has to compute; the limit is "
                f"{limit} (MAX_BATCH_PREFILL_TOKENS)"
            )
        if longest > MAX_PROMPT_LOGPROBS and sequences[0].params.prompt_logprobs:
            return InvalidParameter(
                f"an image has {longest} tokens; prompts whose images have more than "
                f"{MAX_PROMPT_LOGPROBS} give no log-probabilities: leave out decoder_input_details"
            )
        return None
