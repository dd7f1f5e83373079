"""Bodies of vLLM's `/pooling`, `/score` and `/classify` (entrypoints/pooling/*/protocol.py)."""

from dataclasses import replace
from itertools import repeat
from typing import Any, Literal

from pydantic import Field

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.apis.text_inputs import Side, TextsOrIds
from container.frontend.embedding.service import TextOptions
from container.frontend.web.request_body import Body, Items
from container.messages.embedder import Pair, Truncation

# What vLLM and SGLang know and this server does not offer: the values that mean "off".
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (None, False),
    "add_special_tokens": (None, True),
    "cache_salt": (None, ""),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "continue_final_message": (None, False),
    "data": (None,),
    "embed_dtype": (None, "float32"),
    "embed_override_token_id": (None,),
    "embed_overrides": (None, []),
    "endianness": (None, "native", "little"),
    "instruct": (None, ""),
    "instruction": (None, ""),
    "late_chunking_params": (None,),
    "lora_path": (None, "", []),
    "media_io_kwargs": (None, {}),
    "messages": (None,),
    "mm_processor_kwargs": (None, {}),
    "padding": (None, False, "do_not_pad"),
    "priority": (None, 0),
}
# The names that a pair's two sides may have.
SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


class CutBody(Body):
    """vLLM's fields for texts that are too long."""

    truncate_prompt_tokens: int | None = None
    truncation_side: Side | None = None

    def cut(self, options: TextOptions) -> TextOptions:
        """Add these fields to the options; -1 is the model's length. Raises InvalidParameter."""
        cut = self.truncate_prompt_tokens
        if cut is not None and cut != -1 and cut < 1:
            raise InvalidParameter(
                f"`truncate_prompt_tokens` must be -1 or >= 1. Given: {cut}",
                field="truncate_prompt_tokens",
            )
        if cut is not None:
            options = replace(options, truncate=True, max_tokens=max(cut, 0))
        if self.truncation_side is not None:
            options = replace(options, side=Truncation(self.truncation_side))
        return options


class PoolingBody(CutBody):
    """The fields of all three routes. `use_activation` false answers raw scores and vectors."""

    model: str | None = Field(default=None, max_length=1000)
    use_activation: bool | None = None
    request_id: str | None = Field(default=None, max_length=200)
    rid: str | None = Field(default=None, max_length=200)
    user: str | None = None

    def options(self, field: str) -> TextOptions:
        """How texts are read. Raises InvalidParameter."""
        return self.cut(TextOptions(field))


class PairBody(CutBody):
    """vLLM's limits of queries and documents, in tokens; 0 is none."""

    max_tokens_per_query: int | None = Field(default=None, ge=0)
    max_tokens_per_doc: int | None = Field(default=None, ge=0)

    def cut_sides(self, options: TextOptions) -> TextOptions:
        """Add these fields to the options."""
        return replace(
            self.cut(options),
            max_query_tokens=self.max_tokens_per_query or 0,
            max_document_tokens=self.max_tokens_per_doc or 0,
        )


class PoolingRequest(PoolingBody):
    """vLLM's `/pooling`: vectors, or scores of labels."""

    input: TextsOrIds
    task: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None


class ClassifyRequest(PoolingBody):
    """vLLM's `/classify`."""

    input: TextsOrIds


class ScoreRequest(PoolingBody, PairBody):
    """vLLM's `/score`: one text with each of several, or pairs."""

    text_1: str | Items[str] | None = None
    text_2: str | Items[str] | None = None
    queries: str | Items[str] | None = None
    documents: str | Items[str] | None = None
    items: str | Items[str] | None = None
    data_1: str | Items[str] | None = None
    data_2: str | Items[str] | None = None

    def options(self, field: str) -> TextOptions:
        """How texts are read. Raises InvalidParameter."""
        return self.cut_sides(TextOptions(field))

    def sides(self) -> tuple[str, str]:
        """The names of the fields that have the two sides. Raises InvalidParameter."""
        for first, second in SIDES:
            if getattr(self, first) is not None and getattr(self, second) is not None:
                return first, second
        raise InvalidParameter("`text_1` and `text_2` must be given", field="text_1")

    def pairs(self) -> list[Pair]:
        """The pairs. Raises InvalidParameter."""
        first, second = self.sides()
        ones, others = _listed(getattr(self, first)), _listed(getattr(self, second))
        if not others or not ones:
            name = second if ones else first
            raise InvalidParameter(f"`{name}` must not be empty", field=name)
        if len(ones) not in (1, len(others)):
            raise InvalidParameter(
                f"`{first}` must have 1 text or as many as `{second}`, {len(others)}. "
                f"Given: {len(ones)}",
                field=first,
            )
        sources = repeat(ones[0], len(others)) if len(ones) == 1 else ones
        return [Pair(*pair) for pair in zip(sources, others, strict=False)]


def refuse(body: dict[str, Any]) -> None:
    """Raise UnsupportedParameter for a field that is not offered."""
    for name, neutral in NOT_OFFERED.items():
        if body.get(name) not in neutral:
            raise UnsupportedParameter(f"`{name}` is not supported by this server", field=name)


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
