"""The incremental detokenizer: turns each new id into the text that is final by then.

    | ... | prefix .. read | read .. end |
            context for        ids whose text has not been released yet
            correct spacing

A character whose bytes are spread over several tokens is buffered until it is complete.
"""

from container.text.tokenizer import Tokenizer

# A tokenizer that writes spaces in front of words drops the first space of a text, so the
# completion is decoded together with the last few ids of its prompt.
CONTEXT = 5
# A UTF-8 character takes at most 4 bytes, so more buffered ids than this must be invalid bytes.
MAX_PENDING_IDS = 8
REPLACEMENT = "�"


class Detokenizer:
    """Detokenizes one sequence; omits special tokens, except those in `shown`."""

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: list[int], shown: dict[int, str] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._shown = shown or {}
        self._ids = prompt_ids[-CONTEXT:]
        self._prefix = 0
        self._read = len(self._ids)

    def add(self, token_id: int) -> str:
        """Add the next id; return the text that it completes, which may be empty."""
        marker = self._shown.get(token_id)
        if marker is not None:
            return self.flush() + marker
        self._ids.append(token_id)
        return self._release(buffers_incomplete=True)

    def flush(self) -> str:
        """Return the buffered text, even if its last character is incomplete."""
        return self._release(buffers_incomplete=False)

    def _release(self, *, buffers_incomplete: bool) -> str:
        text_so_far = self._decode(self._ids[self._prefix : self._read])
        text = self._decode(self._ids[self._prefix :])
        is_incomplete = (
            text.endswith(REPLACEMENT) and len(self._ids) - self._read <= MAX_PENDING_IDS
        )
        if len(text) <= len(text_so_far) or (buffers_incomplete and is_incomplete):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return text[len(text_so_far) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""
