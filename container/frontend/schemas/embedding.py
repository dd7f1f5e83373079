"""Bodies of the embedding and rerank routes.

* OpenAI's embeddings (API reference, "Create embeddings"); `truncate`, `truncation_direction` and
  `prompt_name` are taken from text-embeddings-inference (TEI) as well.
* TEI's `/embed`, `/similarity`, `/predict`, `/rerank` (router/src/http/types.rs).
* Cohere's (v1 and v2) and Jina's `/v1/rerank`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from container.embed_messages import EmbedInput, Pair, Truncation
from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.bodies import Body
from container.frontend.embedding import TextOptions

Texts = str | list[str]
TextsOrIds = str | list[str] | list[int] | list[list[int]]


def _side(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Side = Annotated[Literal["left", "right"], BeforeValidator(_side)]


class TextBody(Body):
    """What every dialect's request may say of long texts and prompts."""

    truncate: bool | None = None
    truncation_direction: Side = "right"
    prompt_name: str | None = None

    def options(self, field: str) -> TextOptions:
        """Collect them."""
        side = Truncation(self.truncation_direction)
        return TextOptions(field, self.prompt_name, self.truncate, side)


class OpenAIEmbedRequest(TextBody):
    """OpenAI's shape. Token ids are the served model's own."""

    input: TextsOrIds
    model: str | None = Field(default=None, max_length=1000)
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    user: str | None = None


class EmbedRequest(TextBody):
    """TEI's `/embed`; also what Hugging Face's feature-extraction clients send."""

    inputs: TextsOrIds
    normalize: bool | None = True
    dimensions: int | None = None


class SimilarityInputs(Body):
    """A sentence and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityRequest(Body):
    """TEI's `/similarity`."""

    inputs: SimilarityInputs
    parameters: TextBody | None = None


class PredictRequest(TextBody):
    """TEI's `/predict`: a text, a pair, or a batch of one-element and two-element lists."""

    inputs: str | list[str] | list[list[str]]
    raw_scores: bool = False

    @property
    def is_batch(self) -> bool:
        """Whether several texts or pairs were given."""
        return isinstance(self.inputs, list) and isinstance(next(iter(self.inputs), ""), list)

    def pairs(self) -> list[EmbedInput]:
        """The texts and pairs. Raises InvalidParameter for lists of other lengths."""
        given = self.inputs if self.is_batch else [self.inputs]
        return [_text_or_pair(one) for one in given]


class RerankRequest(TextBody):
    """TEI's `/rerank`."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False


class Document(Body):
    """A document as an object."""

    text: str


class CohereRerankRequest(Body):
    """Cohere's and Jina's `/v1/rerank`."""

    query: str
    documents: list[str | Document]
    model: str | None = Field(default=None, max_length=1000)
    top_n: int | None = None
    return_documents: bool | None = False
    rank_fields: list[str] | None = None
    max_chunks_per_doc: int | None = None
    max_tokens_per_doc: int | None = None

    @property
    def texts(self) -> list[str]:
        """The documents as texts."""
        return [one if isinstance(one, str) else one.text for one in self.documents]

    def check(self) -> None:
        """Raise InvalidParameter, or UnsupportedParameter for what is not offered."""
        if self.top_n is not None and self.top_n < 1:
            raise InvalidParameter(
                f"`top_n` must be at least 1. Given: {self.top_n}", field="top_n"
            )
        for name in ("max_chunks_per_doc", "max_tokens_per_doc"):
            if getattr(self, name) is not None:
                raise UnsupportedParameter(f"`{name}` is not supported by this server", field=name)
        if self.rank_fields not in (None, ["text"]):
            raise UnsupportedParameter(
                "`rank_fields` is not supported by this server: documents are texts",
                field="rank_fields",
            )


def as_inputs(given: TextsOrIds) -> list[EmbedInput]:
    """Make a list of any of the forms: text, texts, ids, lists of ids."""
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [given]  # the whole list is ids
    return list(given)  # type: ignore[arg-type]  # as above


def _text_or_pair(given: Any) -> EmbedInput:
    if isinstance(given, str):
        return given
    if len(given) == 1:
        return str(given[0])
    if len(given) == 2:
        return Pair(given[0], given[1])
    raise InvalidParameter(
        f"`inputs` has a list of {len(given)}; give a text, a pair, or a list of these as lists",
        field="inputs",
    )
