"""The error for a field that the container behind the proxy cannot take."""


class Unsupported(Exception):
    """A field of a request has no counterpart in the container's API."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"`{field}`: {reason}")
        self.field = field
        self.message = f"`{field}`: {reason}"
