"""Reads regular expressions as ECMA-262 does, which JSON Schema follows; pure Python."""

import re
from collections.abc import Iterator

ANYTHING = r"(.|\n)*"
# An escape, a class (whose first `]` may end it: `[]` and `[^]` are whole), or one character.
_PIECE = re.compile(r"\\(?:c[A-Za-z]|[pPu]\{[^}]*\}|[\s\S])|\[\^?(?:\\[\s\S]|[^\]\\])*\]|[\s\S]")
_LITERAL = re.compile(r"\^(?:\(\??:?)?([\w|-]+)\)?\$")


def in_rust(pattern: str) -> str:
    """Write a pattern in the syntax of Rust's regex, which differs in a few escapes."""
    pieces = list(_PIECE.findall(pattern))
    result = []
    for index, piece in enumerate(pieces):
        if piece == "[^]":
            piece = r"[\s\S]"
        elif piece == "[]":
            piece = r"[^\s\S]"
        elif piece.startswith("["):
            piece = _class_in_rust(piece)
        elif piece.startswith(r"\c"):
            piece = rf"\x{ord(piece[2]) % 32:02x}"
        elif piece == "{" and not _is_quantifier(pieces, index):
            piece = r"\{"  # but readers differ about `{,3}`, which is refused
        result.append(piece)
    return "".join(result)


def _class_in_rust(piece: str) -> str:
    """Escape what Rust reads as a class in a class, or as an operator between classes."""
    escaped = re.sub(r"\\[\s\S]|\[|&(?=&)|~(?=~)", _escaped_in_class, piece[1:])
    return f"[{escaped}"


def _escaped_in_class(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith("\\") else f"\\{match[0]}"


def whole_text(pattern: str) -> str:
    """Write an expression for all texts in which a pattern matches.

    `^` and `$` belong to their alternative alone: `^a|b$` matches in texts that begin with an a,
    and in texts that end with a b. `\\$` is a character.
    """
    return "|".join(map(_whole_alternative, _alternatives(in_rust(pattern))))


def words_of(pattern: str) -> list[str] | None:
    """Return the words that a pattern such as `^(a|b)$` matches; None for any other pattern."""
    match = _LITERAL.fullmatch(pattern)
    return match[1].split("|") if match else None


def _whole_alternative(pieces: list[str]) -> str:
    is_begun, is_ended = pieces[:1] == ["^"], pieces[-1:] == ["$"]
    inner = "".join(pieces[int(is_begun) : len(pieces) - int(is_ended)])
    return f"{'' if is_begun else ANYTHING}({inner}){'' if is_ended else ANYTHING}"


def _alternatives(pattern: str) -> Iterator[list[str]]:
    """Split a pattern at the `|` outside of all groups."""
    depth = 0
    pieces: list[str] = []
    for piece in _PIECE.findall(pattern):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and depth == 0:
            yield pieces
            pieces = []
        else:
            pieces.append(piece)
    yield pieces


def _is_quantifier(pieces: list[str], index: int) -> bool:
    text = "".join(pieces[index : index + 24])
    return re.match(r"\{(\d+(,\d*)?|,\d+)\}", text) is not None
