"""The prompt that a vision-language model is checked on: an image, and text after it."""

from container.errors import one_line
from container.images.reader import ReadPrompt
from container.model.checks.layer_probe import NotPageable
from container.model.checks.schedule import CheckPrompt
from container.model.vision.language_model import (
    LanguageModel,
    shift_of,
    spans_ahead,
    typed_spans,
)


def image_prompt(language_model: LanguageModel, read: ReadPrompt, ids: list[int]) -> CheckPrompt:
    """Return a prompt with an image and these ids after it. Raises NotPageable."""
    whole = [*read.ids, *ids]
    try:
        arguments, positions = language_model.arguments_of(whole, read.images)
        shift = shift_of(positions)
    except Exception as error:  # a model that does not suit can fail anywhere
        raise NotPageable(f"its inputs for images cannot be read: {one_line(error)}") from error
    spans = spans_ahead(arguments.get("attention_mask"))
    if spans and spans != typed_spans(read.images):
        raise NotPageable("its masks show later tokens that are not of one image")
    return CheckPrompt(whole, read.images, read.image_end, shift, tuple(spans))
