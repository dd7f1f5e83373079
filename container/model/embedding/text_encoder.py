"""Encodes texts as token ids with the model's own sentence-transformers preprocessing.

The library applies prompts, chat templates, special tokens and pairs; this module only prevents
silent truncation of long texts, and padding.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder

from container.errors import InvalidParameter, PromptTooLong
from container.messages.embedder import Embed, EmbedInput, Pair, Truncation
from container.text.tokenizer import CHARS_A_TOKEN, CUT_TOKENS

log = logging.getLogger(__name__)

Model = SentenceTransformer | CrossEncoder | SparseEncoder


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One input as ids. `prompt_length` is set if pooling excludes the prompt's tokens.

    `per_token`: its rows are the vectors of its tokens, before pooling.
    """

    token_ids: list[int]
    type_ids: list[int] | None = None
    prompt_length: int | None = None
    modality: str = "text"
    per_token: bool = False

    @property
    def num_tokens(self) -> int:
        """Length in tokens."""
        return len(self.token_ids)


class TextEncoder:
    """Encodes inputs as ids for one model."""

    def __init__(self, model: Model, max_tokens: int, vocabulary: int) -> None:
        self._model = model
        self._tokenizer = model.tokenizer
        self._max_tokens = max_tokens
        self._vocabulary = vocabulary

    def encode(self, request: Embed) -> list[EncodedText]:
        """Encode inputs. Raises InvalidParameter, or PromptTooLong if truncation is refused."""
        prompt = self._prompt(request.prompt_name)
        inputs = [self._bounded(request, index) for index in range(len(request.inputs))]
        text_indices = [
            index for index, text_input in enumerate(inputs) if not isinstance(text_input, list)
        ]
        preprocessed = self._preprocess(
            [inputs[index] for index in text_indices], prompt, cut_at=None
        )
        encoded = dict(zip(text_indices, preprocessed, strict=True))
        for index, text_input in enumerate(inputs):
            if isinstance(text_input, list):
                encoded[index] = self._from_ids(text_input, request.field)
            if encoded[index].num_tokens > self._max_tokens:
                if request.truncation is Truncation.REFUSE:
                    raise self._too_long(f"{encoded[index].num_tokens}", index, request.field)
                encoded[index] = self._truncate(text_input, prompt, request.truncation)
        return [
            replace(encoded[index], per_token=request.per_token)
            for index in range(len(request.inputs))
        ]

    def _bounded(self, request: Embed, index: int) -> EmbedInput:
        """Return an input, of a text that is far too long the part that truncation keeps.

        So no more of it is encoded than shows its length. Raises PromptTooLong if truncation is
        refused.
        """
        text = request.inputs[index]
        if not isinstance(text, str):
            return text
        size = self._max_tokens * CHARS_A_TOKEN
        while size < len(text):
            part = text[-size:] if request.truncation is Truncation.LEFT else text[:size]
            ids = self._tokenizer(part, add_special_tokens=False)["input_ids"]
            if len(ids) > self._max_tokens + CUT_TOKENS:
                if request.truncation is Truncation.REFUSE:
                    raise self._too_long(f"more than {self._max_tokens}", index, request.field)
                return part
            size *= CHARS_A_TOKEN
        return text

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
        plain = [
            (text_input.first, text_input.second) if isinstance(text_input, Pair) else text_input
            for text_input in inputs
        ]
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

    def _truncate(
        self, text_input: EmbedInput, prompt: str | None, truncation: Truncation
    ) -> EncodedText:
        count = self._max_tokens
        if isinstance(text_input, list):
            return EncodedText(
                text_input[-count:] if truncation is Truncation.LEFT else text_input[:count]
            )
        previous_side = self._tokenizer.truncation_side
        self._tokenizer.truncation_side = truncation.value
        try:
            return self._preprocess([text_input], prompt, cut_at=count)[0]
        finally:
            self._tokenizer.truncation_side = previous_side

    def _too_long(self, num_tokens: str, index: int, field: str) -> PromptTooLong:
        return PromptTooLong(
            f"`{field}` must have at most {self._max_tokens} tokens each. Given: {num_tokens} in "
            f"text {index} (`truncate` would cut it)",
            field=field,
        )
