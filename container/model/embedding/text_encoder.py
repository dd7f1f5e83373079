"""Texts as token ids, made by the model's own sentence-transformers preprocessing.

The library decides on prompts, chat templates, special tokens and pairs; this module only keeps it
from cutting long texts in silence, and from padding.
"""

import logging
from dataclasses import dataclass
from typing import Any

from sentence_transformers import CrossEncoder, SentenceTransformer

from container.errors import InvalidParameter, PromptTooLong
from container.messages.embedder import Embed, EmbedInput, Pair, Truncation

log = logging.getLogger(__name__)

Model = SentenceTransformer | CrossEncoder


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One input as ids. `prompt_length` is given where pooling leaves the prompt's tokens out."""

    token_ids: list[int]
    type_ids: list[int] | None = None
    prompt_length: int | None = None
    modality: str = "text"

    @property
    def num_tokens(self) -> int:
        """Its length."""
        return len(self.token_ids)


class TextEncoder:
    """Turns inputs into ids for one model."""

    def __init__(self, model: Model, max_tokens: int, vocabulary: int) -> None:
        self._model = model
        self._tokenizer = model.tokenizer
        self._max_tokens = max_tokens
        self._vocabulary = vocabulary

    def encode(self, ask: Embed) -> list[EncodedText]:
        """Make ids. Raises InvalidParameter, or PromptTooLong when nothing may be cut."""
        prompt = self._prompt(ask.prompt_name)
        places = [place for place, one in enumerate(ask.inputs) if not isinstance(one, list)]
        made = self._preprocess([ask.inputs[place] for place in places], prompt, cut_at=None)
        encoded = dict(zip(places, made, strict=True))
        for place, one in enumerate(ask.inputs):
            if isinstance(one, list):
                encoded[place] = self._from_ids(one, ask.field)
            if encoded[place].num_tokens > self._max_tokens:
                if ask.truncation is Truncation.REFUSE:
                    raise self._too_long(encoded[place].num_tokens, place, ask.field)
                encoded[place] = self._cut(one, prompt, ask.truncation)
        return [encoded[place] for place in range(len(ask.inputs))]

    def _prompt(self, name: str | None) -> str | None:
        prompts = self._model.prompts
        if name is not None and name not in prompts:
            known = ", ".join(sorted(prompts)) or "none"
            raise InvalidParameter(
                f"`prompt_name` {name!r} is not one of the model's prompts ({known})",
                field="prompt_name",
            )
        name = name if name is not None else self._model.default_prompt_name
        return (prompts[name] or None) if name is not None else None

    def _preprocess(
        self, inputs: list[EmbedInput], prompt: str | None, cut_at: int | None
    ) -> list[EncodedText]:
        if not inputs:
            return []
        text_options: dict[str, Any] = {"padding": False, "truncation": False}
        if cut_at is not None:
            text_options |= {"truncation": "longest_first", "max_length": cut_at}
        plain = [(one.first, one.second) if isinstance(one, Pair) else one for one in inputs]
        features: dict[str, Any] = self._model.preprocess(
            plain,
            prompt=prompt,
            processing_kwargs={"text": text_options, "common": {"return_tensors": None}},
        )
        ids = features["input_ids"]
        types = features.get("token_type_ids") or [None] * len(ids)
        return [
            EncodedText(
                list(token_ids),
                type_ids,
                features.get("prompt_length"),
                features.get("modality", "text"),
            )
            for token_ids, type_ids in zip(ids, types, strict=True)
        ]

    def _from_ids(self, ids: list[int], field: str) -> EncodedText:
        if not ids or not 0 <= min(ids) <= max(ids) < self._vocabulary:
            raise InvalidParameter(
                f"`{field}` must have token ids from 0 to {self._vocabulary - 1}", field=field
            )
        return EncodedText(ids)

    def _cut(self, one: EmbedInput, prompt: str | None, truncation: Truncation) -> EncodedText:
        count = self._max_tokens
        if isinstance(one, list):
            return EncodedText(one[-count:] if truncation is Truncation.LEFT else one[:count])
        usual_side = self._tokenizer.truncation_side
        self._tokenizer.truncation_side = truncation.value
        try:
            return self._preprocess([one], prompt, cut_at=count)[0]
        finally:
            self._tokenizer.truncation_side = usual_side

    def _too_long(self, num_tokens: int, place: int, field: str) -> PromptTooLong:
        return PromptTooLong(
            f"`{field}` must have at most {self._max_tokens} tokens each. Given: {num_tokens} in "
            f"text {place} (`truncate` would cut it)",
            field=field,
        )
