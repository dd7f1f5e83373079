"""Bodies of TEI's routes (router/src/http/types.rs)."""

from typing import Any

from container.errors import InvalidParameter
from container.frontend.apis.text_inputs import TextBody, TextsOrIds
from container.frontend.web.request_body import Body, Items
from container.messages.embedder import EmbedInput, Pair


class EmbedAllRequest(TextBody):
    """TEI's `/embed_all` and `/embed_sparse`: the vectors of all tokens, or terms."""

    inputs: TextsOrIds


class EmbedRequest(TextBody):
    """TEI's `/embed`; also what Hugging Face's feature-extraction clients send."""

    inputs: TextsOrIds
    normalize: bool | None = True
    dimensions: int | None = None


class SimilarityInputs(Body):
    """A sentence and those that it is compared with."""

    source_sentence: str
    sentences: Items[str]


class SimilarityRequest(Body):
    """TEI's `/similarity`."""

    inputs: SimilarityInputs
    parameters: TextBody | None = None


class PredictRequest(TextBody):
    """TEI's `/predict`: a text, a pair, or a batch of one-element and two-element lists."""

    inputs: str | Items[str] | Items[Items[str]]
    raw_scores: bool = False

    @property
    def is_batch(self) -> bool:
        """Whether the request has a list of texts or pairs."""
        return isinstance(self.inputs, list) and isinstance(next(iter(self.inputs), ""), list)

    def pairs(self) -> list[EmbedInput]:
        """The texts and pairs. Raises InvalidParameter for lists of other lengths."""
        inputs = self.inputs if self.is_batch else [self.inputs]
        return [text_or_pair(item) for item in inputs]


class RerankRequest(TextBody):
    """TEI's `/rerank`."""

    query: str
    texts: Items[str]
    raw_scores: bool = False
    return_text: bool = False


def text_or_pair(item: Any) -> EmbedInput:
    """Read a text, or a list of one or two texts."""
    if isinstance(item, str):
        return item
    if len(item) == 1:
        return str(item[0])
    if len(item) == 2:
        return Pair(item[0], item[1])
    raise InvalidParameter(
        f"`inputs` has a list of {len(item)}; give a text, a pair, or a list of these as lists",
        field="inputs",
    )
