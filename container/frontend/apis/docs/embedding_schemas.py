"""The responses of the embedding, rerank and classification routes, for /openapi.json."""

from typing import Any, Literal

from container.frontend.apis.docs.openai_schemas import Usage
from container.frontend.apis.docs.response_schemas import Answer


class Embedding(Answer):
    """One vector; base64 has its float32 numbers, little-endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Answer):
    """OpenAI's answer to an embeddings request."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class RerankedDocument(Answer):
    """A document's text."""

    text: str


class RerankResult(Answer):
    """A document's place in the request, and its score: a late interaction's may be above 1."""

    index: int
    relevance_score: float
    document: RerankedDocument | None = None


class RerankAnswer(Answer):
    """Cohere's and Jina's answer to a rerank request."""

    id: str
    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage


class EmbeddingsByType(Answer):
    """Cohere's answer: the vectors in each of the types asked for."""

    id: str
    response_type: str
    embeddings: dict[str, list[list[float] | str]]
    texts: list[str]
    meta: dict[str, Any]


class Rank(Answer):
    """TEI's form of a reranked text."""

    index: int
    score: float


class Term(Answer):
    """A token of the vocabulary, and its weight in a text."""

    index: int
    value: float


class Prediction(Answer):
    """TEI's form of a label's score."""

    score: float
    label: str


class VllmList(Answer):
    """vLLM's answer to a request with texts."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: Usage


class PooledText(Answer):
    """A vector, scores of labels, or vectors of tokens; base64 has little-endian float32."""

    index: int
    object: Literal["pooling"]
    data: list[float] | list[list[float]] | str


class Pooled(VllmList):
    """vLLM's `/pooling`."""

    data: list[PooledText]


class PairScore(Answer):
    """The score of a pair of texts."""

    index: int
    object: Literal["score"]
    score: float


class Scores(VllmList):
    """vLLM's `/score`."""

    data: list[PairScore]


class TextClass(Answer):
    """The likeliest label of a text."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classes(VllmList):
    """vLLM's `/classify`."""

    data: list[TextClass]
