"""A rule: a known cause of failed endpoints and the words that show it. Pure."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """A cause: the pattern that shows it, in words of a cause, and what to do about it.

    `cause` and `remedy` may hold the names of the pattern's groups in braces.
    """

    name: str
    pattern: re.Pattern[str]
    cause: str
    remedy: str


def rule(name: str, pattern: str, cause: str, remedy: str) -> Rule:
    """Make a rule; its pattern ignores case."""
    return Rule(name, re.compile(pattern, re.IGNORECASE), cause, remedy)
