"""Reads the images of a request: counts, fetches, decodes and preprocesses them.

The request's greenlet fetches links; decoding and the model's processor run in a thread.
"""

import os
import threading
from collections.abc import Callable, Sequence

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.generation.offloading import Offload
from container.images.decoding import ImageLimits, decode
from container.images.reader import ImageReader, ReadPrompt
from container.images.sources import ImageSource, take_markdown
from container.messages.engine import EngineInfo
from container.text.tokenizer import Tokenizer

Fetch = Callable[[ImageSource], bytes]


class Images:
    """Reads the images of prompts for the served model."""

    def __init__(self, limits: ImageLimits, fetch: Fetch, offload: Offload) -> None:
        self._limits = limits
        self._fetch = fetch
        self._offload = offload
        self._reader: ImageReader | None = None
        self._loading = threading.Lock()

    def check(self, info: EngineInfo, sources: Sequence[ImageSource]) -> None:
        """Check the number of images. Raises InvalidParameter, or UnsupportedParameter for a model
        without images.
        """
        if sources and not info.is_multimodal:
            field = sources[0].field
            raise UnsupportedParameter(
                f"`{field}` has an image; this model reads text only", field=field
            )
        if len(sources) > self._limits.count:
            field = sources[self._limits.count].field
            raise InvalidParameter(
                f"`{field}` is one of {len(sources)} images; a request may have "
                f"{self._limits.count} (MAX_IMAGES_PER_REQUEST)",
                field=field,
            )

    def token(self, info: EngineInfo, tokenizer: Tokenizer) -> str:
        """Return the placeholder of an image in a prompt."""
        return self._load(info, tokenizer).image_token

    def read(
        self,
        info: EngineInfo,
        tokenizer: Tokenizer,
        prompt: str,
        sources: Sequence[ImageSource],
        field: str,
        *,
        add_special_tokens: bool,
    ) -> ReadPrompt:
        """Fetch, decode and preprocess images. Raises the error of an image or of the prompt."""
        self.check(info, sources)
        files = [source.data() if source.is_data else self._fetch(source) for source in sources]
        reader = self._load(info, tokenizer)

        def run() -> ReadPrompt:
            images = [
                decode(data, self._limits, source.field)
                for data, source in zip(files, sources, strict=True)
            ]
            return reader.read(prompt, images, field, add_special_tokens=add_special_tokens)

        return self._offload(run)

    def take_markdown(
        self, info: EngineInfo, tokenizer: Tokenizer, text: str, field: str
    ) -> tuple[str, list[ImageSource]]:
        """Take TGI's Markdown images out of a prompt, if the model reads images."""
        if not info.is_multimodal or "![](" not in text:
            return text, []
        reader = self._load(info, tokenizer)
        placeholder = tokenizer.image_placeholder(reader.image_token)
        return take_markdown(text, placeholder, field)

    def _load(self, info: EngineInfo, tokenizer: Tokenizer) -> ImageReader:
        with self._loading:  # the first request loads, concurrent ones wait
            if self._reader is None:
                self._reader = self._offload(
                    ImageReader.from_folder, os.fspath(info.model_path), tokenizer
                )
            return self._reader


def fetch_nothing(source: ImageSource) -> bytes:
    """Refuse links."""
    raise UnsupportedParameter(
        f"`{source.field}`: this server fetches no images; send a data URL", field=source.field
    )
