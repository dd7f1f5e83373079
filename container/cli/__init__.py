"""Commands for a person at a terminal: `chat` and `doctor`."""
