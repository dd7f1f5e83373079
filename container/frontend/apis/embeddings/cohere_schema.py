"""Bodies of Cohere's `/v2/embed`."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.apis.text_inputs import upper
from container.frontend.embedding.service import TextOptions
from container.frontend.web.request_body import Body, Items
from container.messages.embedder import Truncation

Cut = Annotated[Literal["NONE", "START", "END"], BeforeValidator(upper)]
# The names of a model's prompts for Cohere's input types; the type's own name goes first.
_PROMPTS = {
    "search_query": ("query",),
    "search_document": ("document", "passage"),
    "classification": ("Classification",),
    "clustering": ("Clustering",),
}


class ContentPart(Body):
    """A part of an input."""

    type: str
    text: str | None = None


class EmbedInput(Body):
    """An input made of parts."""

    content: Items[ContentPart]


class CohereEmbedRequest(Body):
    """Cohere's embeddings: `texts`, or `inputs` of text parts."""

    texts: Items[str] | None = None
    inputs: Items[EmbedInput] | None = None
    images: Items[str] | None = None
    model: str | None = Field(default=None, max_length=1000)
    input_type: str | None = Field(default=None, max_length=200)
    embedding_types: Items[str] | None = None
    output_dimension: int | None = None
    truncate: Cut | None = "END"
    max_tokens: int | None = Field(default=None, ge=1)

    def read_texts(self) -> list[str]:
        """Return the texts. Raises InvalidParameter, or UnsupportedParameter for images."""
        if self.images:
            raise UnsupportedParameter(
                "`images` is not supported by this server; `texts` are", field="images"
            )
        if (self.texts is None) == (self.inputs is None):
            raise InvalidParameter("one of `texts` and `inputs` is needed", field="texts")
        if self.texts is not None:
            return list(self.texts)
        return ["\n".join(_text_of(part) for part in item.content) for item in self.inputs or []]

    @property
    def text_field(self) -> str:
        """The field of the texts."""
        return "inputs" if self.texts is None else "texts"

    def options(self, prompts: list[str]) -> TextOptions:
        """Collect the options; `prompts` are the model's. Raises InvalidParameter."""
        return TextOptions(
            self.text_field,
            prompt_name=self._prompt_name(prompts),
            truncate=self.truncate in ("START", "END"),
            side=Truncation.LEFT if self.truncate == "START" else Truncation.RIGHT,
            max_tokens=self.max_tokens or 0,
        )

    def _prompt_name(self, prompts: list[str]) -> str | None:
        """Choose the prompt of an input type; a model may have none for Cohere's own types."""
        kind = self.input_type
        if kind is None:
            return None
        found = next((name for name in (kind, *_PROMPTS.get(kind, ())) if name in prompts), None)
        if found is None and kind not in _PROMPTS:
            known = ", ".join(sorted({*_PROMPTS, *prompts}))
            raise InvalidParameter(
                f"`input_type` {kind[:40]!r} is none of the model's prompts; known: {known}",
                field="input_type",
            )
        return found


def _text_of(part: ContentPart) -> str:
    if part.type != "text" or part.text is None:
        raise UnsupportedParameter(
            f"`inputs` has a part of type {part.type[:40]!r}; this server embeds `text` parts",
            field="inputs",
        )
    return part.text
