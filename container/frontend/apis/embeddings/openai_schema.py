"""Bodies of OpenAI's embeddings and of Cohere's and Jina's rerank."""

from typing import Literal

from pydantic import Field

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.apis.text_inputs import TextBody, TextsOrIds
from container.frontend.web.request_body import Body, Items


class OpenAIEmbedRequest(TextBody):
    """OpenAI's shape. Token ids are the served model's own."""

    input: TextsOrIds
    model: str | None = Field(default=None, max_length=1000)
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    user: str | None = None


class Document(Body):
    """A document as an object."""

    text: str


class CohereRerankRequest(Body):
    """Cohere's and Jina's `/v1/rerank`."""

    query: str
    documents: Items[str | Document]
    model: str | None = Field(default=None, max_length=1000)
    top_n: int | None = None
    return_documents: bool | None = False
    rank_fields: Items[str] | None = None
    max_chunks_per_doc: int | None = None
    max_tokens_per_doc: int | None = None

    @property
    def texts(self) -> list[str]:
        """The documents as texts."""
        return [
            document if isinstance(document, str) else document.text for document in self.documents
        ]

    def check(self) -> None:
        """Raise InvalidParameter, or UnsupportedParameter for fields not offered."""
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
