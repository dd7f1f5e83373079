"""Bodies of vLLM's `/pooling`, `/score` and `/classify` (entrypoints/pooling/*/protocol.py)."""

from itertools import repeat
from typing import Literal

from pydantic import Field

from container.errors import InvalidParameter
from container.frontend.apis.embeddings.peer_fields import (
    PairTruncationFields,
    TruncationFields,
)
from container.frontend.apis.text_inputs import TextsOrIds
from container.frontend.embedding.service import TextOptions
from container.frontend.web.request_body import Items
from container.messages.embedder import Pair

# The names that a pair's two sides may have.
SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


class PoolingBody(TruncationFields):
    """The fields of all three routes. `use_activation` false answers raw scores and vectors."""

    model: str | None = Field(default=None, max_length=1000)
    use_activation: bool | None = None
    request_id: str | None = Field(default=None, max_length=200)
    rid: str | None = Field(default=None, max_length=200)
    user: str | None = None

    def options(self, field: str) -> TextOptions:
        """How texts are read. Raises InvalidParameter."""
        return self.cut(TextOptions(field))


class PoolingRequest(PoolingBody):
    """vLLM's `/pooling`: vectors, or scores of labels."""

    input: TextsOrIds
    task: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None


class ClassifyRequest(PoolingBody):
    """vLLM's `/classify`."""

    input: TextsOrIds


class ScoreRequest(PoolingBody, PairTruncationFields):
    """vLLM's `/score`: one text with each of several, or pairs."""

    text_1: str | Items[str] | None = None
    text_2: str | Items[str] | None = None
    queries: str | Items[str] | None = None
    documents: str | Items[str] | None = None
    items: str | Items[str] | None = None
    data_1: str | Items[str] | None = None
    data_2: str | Items[str] | None = None

    def pair_options(self) -> TextOptions:
        """How both sides are read. Raises InvalidParameter."""
        first, second = self.sides()
        return self.cut_sides(TextOptions(second, query_field=first))

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


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
