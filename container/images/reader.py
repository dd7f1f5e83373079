"""Converts a prompt and its images to ids and tensors with the model's own processor.

transformers' image processors have two backends: torchvision, which does not exist for every torch
release, and Pillow with numpy, which is used here and needs no torch. Videos are not supported.
"""

import json
import logging
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image
from transformers import AutoImageProcessor, ProcessorMixin
from transformers.models.auto.auto_mappings import PROCESSOR_MAPPING_NAMES

from container.errors import InvalidParameter, ModelLoadError
from container.messages.images import ImageSpan, ImageTensors, Tensor
from container.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

# Either of them configures a model's image processor.
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
# Outputs that the engine computes itself: there is no padding.
LEFT_OUT = ("input_ids", "attention_mask")
PROBE_SIZE = (64, 48)
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """A prompt for the engine: ids with expanded image tokens, and the image tensors.

    `image_spans` are the runs of image tokens.
    """

    ids: list[int]
    images: ImageTensors
    image_spans: list[ImageSpan] = field(default_factory=list)

    @property
    def image_end(self) -> int:
        """Index after the last image token."""
        return max((span.stop for span in self.image_spans), default=len(self.ids))


class ImageReader:
    """Processes prompts with images for one model; safe to share between requests."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.image_token: str = processor.image_token

    @classmethod
    def from_folder(cls, folder: str | Path, tokenizer: Tokenizer) -> "ImageReader":
        """Load the processor files of a model's folder. Raises ModelLoadError."""
        try:
            return cls(_load(Path(folder), tokenizer))
        except Exception as error:  # for broken files, transformers can raise anything
            raise ModelLoadError(
                f"{folder}: the image processor cannot be loaded: {type(error).__name__}: {error}"
            ) from error

    def read(
        self, prompt: str, images: list[Image.Image], field: str, *, add_special_tokens: bool
    ) -> ReadPrompt:
        """Expand each image token of a prompt to its image's tokens. Raises InvalidParameter."""
        num_marks = prompt.count(self.image_token)
        if num_marks != len(images):
            raise InvalidParameter(
                f"`{field}` has {len(images)} images and {num_marks} times the text "
                f"{self.image_token!r}, which stands for an image; leave that out of texts",
                field=field,
            )
        try:
            processed = self._processor(
                text=[prompt],
                images=images,
                add_special_tokens=add_special_tokens,
                return_tensors="np",
            )
            ids = processed["input_ids"][0].tolist()
            tensors = {
                name: _to_tensor(processed[name]) for name in processed if name not in LEFT_OUT
            }
        except Exception as error:  # processors refuse images and prompts in their own ways
            log.warning("image processor: refused a request's images: %s", type(error).__name__)
            raise InvalidParameter(
                f"`{field}`: the model cannot take these images"
                + (f": {error}" if isinstance(error, ValueError) else ""),
                field=field,
            ) from error
        return ReadPrompt(ids, tensors, self._spans(ids, images))

    def _spans(self, ids: list[int], images: list[Image.Image]) -> list[ImageSpan]:
        """Return the runs of image tokens, each with a digest of its image.

        Where runs and images differ in number, the digest is that of all images.
        """
        token_ids = set(self._processor.image_token_ids)
        runs = [
            list(run) for is_image, run in groupby(range(len(ids)), lambda at: ids[at] in token_ids)
            if is_image
        ]  # fmt: skip
        digests = [_digest([image]) for image in images]
        if len(runs) != len(images):
            digests = [_digest(images)] * len(runs)
        return [
            ImageSpan(run[0], run[-1] + 1, digest)
            for run, digest in zip(runs, digests, strict=True)
        ]

    def read_probe(self) -> ReadPrompt:
        """Create a prompt with a small image to check a model with; it ends with text."""
        width, height = PROBE_SIZE
        colours = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
        image = Image.fromarray(colours)
        return self.read(f"{self.image_token} said", [image], "probe", add_special_tokens=True)


def _load(folder: Path, tokenizer: Tokenizer) -> Any:
    processor = _without_videos(_processor_class(folder))
    load_image_processor: Any = AutoImageProcessor.from_pretrained
    image_processor = load_image_processor(folder, backend="pil")
    parts = {"tokenizer": tokenizer.inner, "image_processor": image_processor}
    settings, _ = processor.get_processor_dict(folder)
    attributes = [parts.get(name) for name in processor.get_attributes()]
    return processor.from_args_and_dict(attributes, settings)


def _processor_class(folder: Path) -> type[ProcessorMixin]:
    """Return the class named in the model's files, or else the default of the model's type."""
    for name in (*PROCESSOR_FILES, "tokenizer_config.json"):
        if (folder / name).is_file():
            class_name = json.loads((folder / name).read_text()).get("processor_class")
            if class_name is not None:
                return getattr(transformers, class_name)  # type: ignore[no-any-return]
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    return getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type])  # type: ignore[no-any-return]


def _without_videos(processor_class: type[ProcessorMixin]) -> Any:
    """Subclass a processor so that parts may be None: video and audio processors are unused."""

    check_part: Any = processor_class.check_argument_for_proper_class

    def check(self: Any, name: str, part: object) -> object:
        return None if part is None else check_part(self, name, part)

    return type(
        processor_class.__name__, (processor_class,), {"check_argument_for_proper_class": check}
    )


def _digest(images: list[Image.Image]) -> bytes:
    """Identify the pixels of images, in their order."""
    digest = blake2b(digest_size=DIGEST_BYTES)
    for image in images:
        digest.update(f"{image.mode} {image.width} {image.height} ".encode())
        digest.update(image.tobytes())
    return digest.digest()


def _to_tensor(array: Any) -> Tensor:
    array = np.ascontiguousarray(array)
    if array.dtype == object:
        raise ValueError("images of different sizes in one prompt")
    return Tensor(array.dtype.name, list(array.shape), array.tobytes())
