"""Splits patterns that begin with look-ahead into patterns without; pure Python.

`^(?=A)(?!B)C` finds what `^A` and `^C` find and `^B` does not. The last can be written where B is a
text, `.*` and a short text, or a text and the end.
"""

import re

from container.grammar.schema.negation import any_but

_LITERAL = re.compile(r"(?:\\[^\w\s]|[\w\s@:;,/=<>!'\"#%&~`-])+")


def without_lookahead(pattern: str) -> list[str]:
    """Return patterns that together find what one finds: itself, if nothing can be split off."""
    rest, patterns = pattern, []
    while match := re.match(r"\^\(\?([=!])", rest):
        inner, after = _group(rest[match.end() :])
        if inner is None:
            return [pattern]
        if match[1] == "=":
            patterns.append(f"^{inner}" if "|" not in inner else f"^({inner})")
        else:
            negated = _negated(inner)
            if negated is None:
                return [pattern]
            patterns.append(negated)
        rest = f"^{after}"
    if not patterns or "|" in _outside_groups(rest):
        return [pattern]
    return [*patterns, rest] if rest != "^" else patterns


def _group(text: str) -> tuple[str | None, str]:
    """Split a text at the bracket that closes the group in which it begins."""
    depth, index = 1, 0
    for piece in re.findall(r"\\[\s\S]|\[\^?\]?(?:\\[\s\S]|[^\]\\])*\]|[\s\S]", text):
        depth += (piece == "(") - (piece == ")")
        if depth == 0:
            return text[:index], text[index + 1 :]
        index += len(piece)
    return None, ""


def _outside_groups(pattern: str) -> str:
    result, rest = "", pattern
    while "(" in rest:
        before, _, rest = rest.partition("(")
        _, rest = _group(rest)
        result += before
    return result + rest


def _negated(inner: str) -> str | None:
    """Write a pattern for the strings that do not match `^` and this; None if it is unknown."""
    inner = inner.removeprefix("^")
    if inner.startswith(".*"):
        text = _text(inner[2:])
        if text is not None and len(text) == 2 and text[0] == text[1]:
            char = any_but([text[0]])
            single = re.escape(text[0])
            return rf"^({single}?{char})*{single}?$"
        return rf"^{any_but([text])}*$" if text is not None and len(text) == 1 else None
    text = _text(inner.removesuffix("$"))
    if text is None:
        return None
    return f"^{_diverging(text, is_whole=inner.endswith('$'))}$"


def _text(pattern: str) -> str | None:
    """Return the only text that a pattern matches; None if there are others."""
    if not _LITERAL.fullmatch(pattern) or re.search(r"\\[\w]", pattern):
        return None
    return re.sub(r"\\(.)", r"\1", pattern)


def _diverging(text: str, *, is_whole: bool) -> str:
    """Write an expression for all texts but this one or, unless `is_whole`, its continuations."""
    result = r"[\s\S]+" if is_whole else ""
    for index in range(len(text) - 1, -1, -1):
        char = re.escape(text[index])
        longer = f"|{char}{result}" if result else ""
        result = rf"({any_but([text[index]])}[\s\S]*{longer})?"
    return result
