"""Finds where a bracketed text ends, as it comes: by its brackets, outside of its quotes."""


class BracketScanner:
    """Counts brackets from a depth on; `is_closed` once it is back at 0."""

    def __init__(self, *, depth: int = 0, quotes: str = '"') -> None:
        self._depth = depth
        self._quotes = quotes
        self._quote = ""
        self._is_escaped = False
        self.is_closed = False

    def scan(self, text: str) -> int:
        """How many of these characters come before the end, the closing bracket included."""
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

    def _scan_quoted(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == self._quote:
            self._quote = ""
