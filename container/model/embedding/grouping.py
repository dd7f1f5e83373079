"""Groups texts for forward passes: by kind, and by length where texts are padded."""

from collections.abc import Iterator, Sequence

from container.model.embedding.text_encoder import EncodedText

# A group of texts is padded to its longest; at most this fraction of it is padding.
MAX_PADDING = 0.15


def grouped(texts: Sequence[EncodedText], *, is_unpadded: bool) -> Iterator[list[int]]:
    """Yield the indices of the texts of each group, all sorted by length."""
    group: list[int] = []
    total = 0
    for index in sorted(range(len(texts)), key=lambda index: texts[index].num_tokens):
        text = texts[index]
        is_other_kind = bool(group) and _kind(texts[group[0]]) != _kind(text)
        padded = text.num_tokens * (len(group) + 1)
        padding = 0 if is_unpadded else padded - total - text.num_tokens
        if is_other_kind or padding > MAX_PADDING * padded:
            yield group
            group, total = [], 0
        group.append(index)
        total += text.num_tokens
    yield group


def _kind(text: EncodedText) -> tuple[int | None, str, bool, str | None]:
    """Return the properties that all texts of one group share."""
    return text.prompt_length, text.modality, text.per_token, text.side
