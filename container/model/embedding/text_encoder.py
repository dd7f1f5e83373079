"""Encodes texts as token ids with the model's own sentence-transformers preprocessing.

The library applies prompts, chat templates, special tokens and pairs; this module only prevents
silent truncation of long texts, and padding.
"""

from dataclasses import dataclass, replace
from typing import Any

from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
)

from container.errors import InvalidParameter, PromptTooLong
from container.messages.embedder import Embed, EmbedInput, Pair, Truncation
from container.model.embedding.text_limits import Side, TextLimits
from container.text.tokenizer import CHARS_A_TOKEN, CUT_TOKENS

Model = SentenceTransformer | CrossEncoder | SparseEncoder | MultiVectorEncoder
# The names of the prompts that late-interaction models have for their two sides.
SIDE_PROMPTS: dict[Side, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}
# Characters of a text in an error.
EXCERPT = 30
EXPANDED_FEATURES = ("input_ids", "token_type_ids", "attention_mask", "query_expansion_positions")


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One input as ids. `prompt_length` is set if pooling excludes the prompt's tokens.

    `per_token`: its rows are the vectors of its tokens, before pooling. `side` is set where the
    model encodes queries and documents differently; then `attended` has a 0 for tokens that
    attention leaves out, `expanded` a 1 for those that query expansion has added.
    """

    token_ids: list[int]
    type_ids: list[int] | None = None
    prompt_length: int | None = None
    modality: str = "text"
    per_token: bool = False
    side: Side | None = None
    attended: list[int] | None = None
    expanded: list[int] | None = None

    @property
    def num_tokens(self) -> int:
        """Length in tokens."""
        return len(self.token_ids)


class TextEncoder:
    """Encodes inputs as ids for one model."""

    def __init__(self, model: Model, max_tokens: int, vocabulary: int) -> None:
        self._model = model
        self._tokenizer = model.tokenizer
        self._vocabulary = vocabulary
        self._has_sides = isinstance(model, MultiVectorEncoder)
        self.limits = TextLimits(model[0], max_tokens, has_sides=self._has_sides)

    def encode(self, request: Embed) -> list[EncodedText]:
        """Encode inputs. Raises InvalidParameter, or PromptTooLong if truncation is refused."""
        inputs = [self._cut_side(request, index) for index in range(len(request.inputs))]
        encoded: dict[int, EncodedText] = {}
        for side, indices in self._by_side(request):
            encoded |= self._encode_side(request, inputs, indices, side)
        return [
            replace(encoded[index], per_token=request.per_token)
            for index in range(len(request.inputs))
        ]

    def _by_side(self, request: Embed) -> list[tuple[Side | None, range]]:
        """Return the indices of the inputs of each side."""
        count = len(request.inputs)
        if not self._has_sides:
            return [(None, range(count))]
        return [
            ("query", range(request.num_queries)),
            ("document", range(request.num_queries, count)),
        ]

    def _encode_side(
        self, request: Embed, inputs: list[EmbedInput], indices: range, side: Side | None
    ) -> dict[int, EncodedText]:
        prompt = self._prompt(request.prompt_name, side)
        limit = self.limits.of(side, request.max_tokens)
        bounded = {i: self._bounded_input(request, inputs[i], i, limit) for i in indices}
        texts = {i: text for i, text in bounded.items() if not isinstance(text, list)}
        preprocessed = self._preprocess([*texts.values()], prompt, side, cut_at=None)
        encoded = dict(zip(texts, preprocessed, strict=True))
        for index, text_input in bounded.items():
            if isinstance(text_input, list):
                encoded[index] = self._from_ids(text_input, request.field, side)
            if encoded[index].num_tokens > limit:
                if request.truncation is Truncation.REFUSE:
                    raise _too_long(request, index, f"{encoded[index].num_tokens}", limit)
                encoded[index] = self._truncate(text_input, prompt, side, limit, request.truncation)
        return encoded

    def _cut_side(self, request: Embed, index: int) -> EmbedInput:
        """Return an input with at most as many tokens of a query or document as requested."""
        text = request.inputs[index]
        most = (request.max_query_tokens, request.max_document_tokens)
        if isinstance(text, list) or most == (0, 0):
            return text
        if isinstance(text, Pair):
            return Pair(self._first_tokens(text.first, most[0]),
                        self._first_tokens(text.second, most[1]))  # fmt: skip
        return self._first_tokens(text, most[index >= request.num_queries])

    def _first_tokens(self, text: str, count: int) -> str:
        """Return the text's beginning that has `count` tokens; all of it for 0."""
        if not count:
            return text
        text = self._bounded(text, count)
        encoded = self._tokenizer(
            text,
            add_special_tokens=False,
            truncation=True,
            max_length=count,
            return_offsets_mapping=self._tokenizer.is_fast,
        )
        if "offset_mapping" in encoded:
            ends = [end for _, end in encoded["offset_mapping"]]
            return text[: max(ends, default=0)]
        decoded: str = self._tokenizer.decode(encoded["input_ids"])
        return decoded

    def _bounded_input(
        self, request: Embed, text_input: EmbedInput, index: int, limit: int
    ) -> EmbedInput:
        """Return an input, of texts that are far too long the parts that truncation keeps.

        Raises PromptTooLong if truncation is refused.
        """
        if isinstance(text_input, list):
            return text_input
        bounded: str | Pair
        if isinstance(text_input, Pair):
            sides = (text_input.first, text_input.second)
            bounded = Pair(*(self._bounded(text, limit, request.truncation) for text in sides))
        else:
            bounded = self._bounded(text_input, limit, request.truncation)
        if bounded != text_input and request.truncation is Truncation.REFUSE:
            raise _too_long(request, index, f"more than {limit}", limit)
        return bounded

    def _bounded(self, text: str, limit: int, truncation: Truncation = Truncation.RIGHT) -> str:
        """Return a text, of one that is far too long the end that truncation keeps.

        It has over `limit` tokens still; so no more of a text is encoded than shows its length.
        """
        size = limit * CHARS_A_TOKEN
        while size < len(text):
            part = text[-size:] if truncation is Truncation.LEFT else text[:size]
            ids = self._tokenizer(part, add_special_tokens=False)["input_ids"]
            if len(ids) > limit + CUT_TOKENS:
                return part
            size *= CHARS_A_TOKEN
        return text

    def _prompt(self, name: str | None, side: Side | None) -> str | None:
        prompts = self._model.prompts
        if name is not None and name not in prompts:
            known = ", ".join(sorted(prompts)) or "none"
            raise InvalidParameter(
                f"`prompt_name` {name!r} is not one of the model's prompts ({known})",
                field="prompt_name",
            )
        if side is not None:
            own = [prompts[known] for known in SIDE_PROMPTS[side] if prompts.get(known)]
            return own[0] if own else None
        name = name if name is not None else self._model.default_prompt_name
        return (prompts[name] or None) if name is not None else None

    def _preprocess(
        self,
        inputs: list[EmbedInput],
        prompt: str | None,
        side: Side | None,
        cut_at: int | None,
    ) -> list[EncodedText]:
        if not inputs:
            return []
        plain = [
            (text_input.first, text_input.second) if isinstance(text_input, Pair) else text_input
            for text_input in inputs
        ]
        if side == "query" and self.limits.expands:
            return [self._expanded(text, prompt, cut_at) for text in plain]
        text_options: dict[str, Any] = {"padding": False, "truncation": False}
        if cut_at is not None:
            text_options |= {"truncation": "longest_first", "max_length": cut_at}
        options: dict[str, Any] = {} if side is None else {"task": side}
        features: dict[str, Any] = self._model.preprocess(
            plain,
            prompt=prompt,
            processing_kwargs={"text": text_options, "common": {"return_tensors": None}},
            **options,
        )
        ids = features["input_ids"]
        types = features.get("token_type_ids") or [None] * len(ids)
        prompt_length = features.get("prompt_length") if side is None else None
        return [
            EncodedText(
                list(token_ids),
                type_ids,
                prompt_length,
                features.get("modality", "text"),
                side=side,
            )
            for token_ids, type_ids in zip(ids, types, strict=True)
        ]

    def _expanded(self, query: Any, prompt: str | None, cut_at: int | None) -> EncodedText:
        """Encode one query with the tokens that query expansion adds; it needs tensors."""
        text_options: dict[str, Any] = {"truncation": False}
        if cut_at is not None:
            text_options = {"truncation": "longest_first"}
            if not self.limits.is_fixed:
                text_options["max_length"] = cut_at
        features: dict[str, Any] = self._model.preprocess(
            [query], prompt=prompt, processing_kwargs={"text": text_options}, task="query"
        )
        rows = {
            name: value[0].int().tolist()
            for name, value in features.items()
            if name in EXPANDED_FEATURES
        }
        return EncodedText(
            rows["input_ids"],
            rows.get("token_type_ids"),
            modality=features.get("modality", "text"),
            side="query",
            attended=rows["attention_mask"],
            expanded=rows["query_expansion_positions"],
        )

    def _from_ids(self, ids: list[int], field: str, side: Side | None) -> EncodedText:
        if not ids or not 0 <= min(ids) <= max(ids) < self._vocabulary:
            raise InvalidParameter(
                f"`{field}` must have token ids from 0 to {self._vocabulary - 1}", field=field
            )
        return EncodedText(ids, side=side)

    def _truncate(
        self,
        text_input: EmbedInput,
        prompt: str | None,
        side: Side | None,
        count: int,
        truncation: Truncation,
    ) -> EncodedText:
        if isinstance(text_input, list):
            cut = text_input[-count:] if truncation is Truncation.LEFT else text_input[:count]
            return EncodedText(cut, side=side)
        # Below its special tokens a tokenizer cuts nothing.
        is_pair = isinstance(text_input, Pair)
        count = max(count, self._tokenizer.num_special_tokens_to_add(pair=is_pair))
        previous_side = self._tokenizer.truncation_side
        self._tokenizer.truncation_side = truncation.value
        try:
            return self._preprocess([text_input], prompt, side, cut_at=count)[0]
        finally:
            self._tokenizer.truncation_side = previous_side


def _too_long(request: Embed, index: int, num_tokens: str, limit: int) -> PromptTooLong:
    text_input, field, each = request.inputs[index], request.field, "each"
    names, where = f"`{field}`", f"text {index}"
    if request.query_field and isinstance(text_input, Pair):
        names, where, each = f"`{request.query_field}` and {names}", f"pair {index}", "together"
    elif request.query_field and isinstance(text_input, str):
        # Equal texts are sent once, so the index is not the client's.
        field = request.query_field if index < request.num_queries else field
        names, where = f"`{field}`", f"the text that begins with {text_input[:EXCERPT]!r}"
    return PromptTooLong(
        f"{names} must have at most {limit} tokens {each}. Given: {num_tokens} in {where} "
        "(`truncate` would cut it)",
        field=field,
    )
