"""Texts as the embedding routes of every dialect take them."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from container.frontend.embedding.service import TextOptions
from container.frontend.web.request_body import Body, Items
from container.messages.embedder import EmbedInput, Truncation

Texts = str | Items[str]
TextsOrIds = str | Items[str] | Items[int] | Items[Items[int]] | Items[str | Items[int]]


def _side(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def upper(value: object) -> object:
    """Return a text in capitals, and anything else unchanged."""
    return value.upper() if isinstance(value, str) else value


Side = Annotated[Literal["left", "right"], BeforeValidator(_side)]


class TextBody(Body):
    """The options of texts that every dialect has: truncation and the name of a prompt."""

    truncate: bool | None = None
    truncation_direction: Side = "right"
    prompt_name: str | None = None

    def options(self, field: str) -> TextOptions:
        """Collect the options; errors name the texts as `field`."""
        side = Truncation(self.truncation_direction)
        return TextOptions(field, self.prompt_name, self.truncate, side)


def as_inputs(texts_or_ids: TextsOrIds) -> list[EmbedInput]:
    """Return a list of inputs for any of the forms: text, texts, ids, lists of ids."""
    if isinstance(texts_or_ids, str):
        return [texts_or_ids]
    if texts_or_ids and isinstance(texts_or_ids[0], int):
        return [texts_or_ids]  # the whole list is ids
    return list(texts_or_ids)  # type: ignore[arg-type]  # as above
