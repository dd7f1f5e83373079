"""Finds the end of streamed bracketed text by counting brackets outside quotes."""


class BracketScanner:
    """Counts brackets, starting at `depth`; `is_closed` once the count is back at 0."""

    def __init__(self, *, depth: int = 0, quotes: str = '"') -> None:
        self._depth = depth
        self._quotes = quotes
        self._quote = ""
        self._is_escaped = False
        self.has_begun = False
        self.is_closed = False

    def scan(self, text: str) -> int:
        """Return how many of these characters belong to the text, the closing bracket included."""
        self.has_begun = self.has_begun or bool(text)
        for index, character in enumerate(text):
            if self._quote:
                self._scan_quoted(character)
            elif character in self._quotes:
                self._quote = character
            elif character in "([{":
                self._depth += 1
            elif character in ")]}":
                self._depth -= 1
                if self._depth == 0:
                    self.is_closed = True
                    return index + 1
        return len(text)

    def is_top(self, character: str, *, mark: str = ",") -> bool:
        """Scan one character; whether it is the mark, outside of inner brackets and quotes."""
        is_top = character == mark and not self._quote and self._depth == 1
        self.scan(character)
        return is_top

    def _scan_quoted(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == self._quote:
            self._quote = ""
