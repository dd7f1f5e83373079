"""The longest texts that an embedding model takes, on each side of a late-interaction model."""

from typing import Any, Literal

from torch import nn

Side = Literal["query", "document"]


class TextLimits:
    """The limits of one model, in tokens, from its first sentence-transformers module.

    Query expansion fills queries up with mask tokens: always to the same length if it `is_fixed`,
    else at least to that length.
    """

    def __init__(self, first: nn.Module, max_tokens: int, *, has_sides: bool) -> None:
        options: Any = first if has_sides else None
        expansion: dict[str, Any] = getattr(options, "query_expansion", None) or {}
        self.expands = bool(expansion)
        self.is_fixed = expansion.get("strategy") == "fixed"
        query: int | None = getattr(options, "query_length", None)
        if self.is_fixed:
            query = expansion["length"]
        document: int | None = getattr(options, "document_length", None)
        self._most: dict[Side | None, int] = {
            None: max_tokens,
            "query": min(query or max_tokens, max_tokens),
            "document": min(document or max_tokens, max_tokens),
        }

    def of(self, side: Side | None, requested: int = 0) -> int:
        """Return the limit of a side; a lower one that is requested (0: none) takes its place.

        Queries of a fixed length keep it.
        """
        most = self._most[side]
        if not requested or (side == "query" and self.is_fixed):
            return most
        return min(requested, most)
