"""Bodies of vLLM's `/pooling`, `/score` and `/classify` (entrypoints/pooling/*/protocol.py)."""

from itertools import repeat
from typing import Any, Literal

from pydantic import Field

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.apis.text_inputs import TextsOrIds
from container.frontend.generation.embedding_service import TextOptions
from container.frontend.web.request_body import Body, Items
from container.messages.embedder import Pair

# What vLLM knows and this server does not offer: the values that mean "off".
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (None, True),
    "cache_salt": (None, ""),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "embed_dtype": (None, "float32"),
    "endianness": (None, "native", "little"),
    "instruction": (None, ""),
    "max_tokens_per_doc": (None, 0),
    "max_tokens_per_query": (None, 0),
    "messages": (None,),
    "mm_processor_kwargs": (None, {}),
    "padding": (None, False),
    "priority": (None, 0),
    "truncation_side": (None, "right"),
}
# The names that a pair's two sides may have.
SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


class PoolingBody(Body):
    """The fields of all three routes. `use_activation` false answers raw scores and vectors."""

    model: str | None = Field(default=None, max_length=1000)
    truncate_prompt_tokens: int | None = None
    use_activation: bool | None = None
    request_id: str | None = Field(default=None, max_length=200)
    user: str | None = None

    def options(self, field: str) -> TextOptions:
        """How texts are read; -1 cuts them to the model's length. Raises UnsupportedParameter."""
        if self.truncate_prompt_tokens not in (None, -1):
            raise UnsupportedParameter(
                "`truncate_prompt_tokens` may only be -1, the model's own length",
                field="truncate_prompt_tokens",
            )
        return TextOptions(field, truncate=True if self.truncate_prompt_tokens == -1 else None)


class PoolingRequest(PoolingBody):
    """vLLM's `/pooling`: vectors, or scores of labels."""

    input: TextsOrIds
    task: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None


class ClassifyRequest(PoolingBody):
    """vLLM's `/classify`."""

    input: TextsOrIds


class ScoreRequest(PoolingBody):
    """vLLM's `/score`: one text with each of several, or pairs."""

    text_1: str | Items[str] | None = None
    text_2: str | Items[str] | None = None
    queries: str | Items[str] | None = None
    documents: str | Items[str] | None = None
    items: str | Items[str] | None = None
    data_1: str | Items[str] | None = None
    data_2: str | Items[str] | None = None

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
