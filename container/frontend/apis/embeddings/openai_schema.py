"""Bodies of OpenAI's embeddings and of Cohere's and Jina's rerank."""

from typing import Literal

from pydantic import Field

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.apis.embeddings.peer_fields import (
    PairTruncationFields,
    TruncationFields,
)
from container.frontend.apis.text_inputs import TextBody, TextsOrIds
from container.frontend.embedding.service import TextOptions
from container.frontend.web.request_body import Body, Items


class OpenAIEmbedRequest(TextBody, TruncationFields):
    """OpenAI's shape, and vLLM's fields. Token ids are the served model's own."""

    input: TextsOrIds
    model: str | None = Field(default=None, max_length=1000)
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    use_activation: bool | None = None
    user: str | None = None

    def options(self, field: str) -> TextOptions:
        """How texts are read. Raises InvalidParameter."""
        return self.cut(super().options(field))


class Document(Body):
    """A document as an object."""

    text: str


class CohereRerankRequest(PairTruncationFields):
    """Cohere's, Jina's, vLLM's and SGLang's rerank. `top_n` 0 is all, as in vLLM."""

    query: str
    documents: Items[str | Document]
    model: str | None = Field(default=None, max_length=1000)
    top_n: int | None = None
    return_documents: bool | None = None
    use_activation: bool | None = None
    request_id: str | None = Field(default=None, max_length=200)
    rank_fields: Items[str] | None = None
    max_chunks_per_doc: int | None = None

    @property
    def texts(self) -> list[str]:
        """The documents as texts."""
        return [
            document if isinstance(document, str) else document.text for document in self.documents
        ]

    def check(self) -> None:
        """Raise InvalidParameter, or UnsupportedParameter for fields not offered."""
        if self.top_n is not None and self.top_n < 0:
            raise InvalidParameter(
                f"`top_n` must be at least 0. Given: {self.top_n}", field="top_n"
            )
        if self.max_chunks_per_doc is not None:
            raise UnsupportedParameter(
                "`max_chunks_per_doc` is not supported by this server; `max_tokens_per_doc` is",
                field="max_chunks_per_doc",
            )
        if self.rank_fields not in (None, ["text"]):
            raise UnsupportedParameter(
                "`rank_fields` is not supported by this server: documents are texts",
                field="rank_fields",
            )
