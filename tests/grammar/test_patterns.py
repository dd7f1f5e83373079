"""Patterns of JSON Schema: read as ECMAScript does, negated, without look-ahead."""

import random
import re

import pytest

from container.grammar.schema.lookahead import without_lookahead
from container.grammar.schema.negation import other_words
from container.grammar.schema.patterns import in_rust, whole_text, words_of


def test_all_words_but_some() -> None:
    rnd = random.Random(1)
    for _ in range(200):
        words = ["".join(rnd.choices("ab-]é", k=rnd.randint(0, 3))) for _ in range(3)]
        pattern = re.compile(other_words(words))
        for _ in range(30):
            text = "".join(rnd.choices("ab-]éz\n", k=rnd.randint(0, 4)))
            assert (pattern.fullmatch(text) is not None) is (text not in words), (words, text)


@pytest.mark.parametrize(
    ("pattern", "texts", "others"),
    [
        (r"a\$", ["a$", "xa$y"], ["a", "ay"]),
        (r"^a|b$", ["ax", "xb", "b"], ["xa", "bx"]),
        (r"^(a|b)$", ["a", "b"], ["ab", "xb"]),
        (r"^a\\$", ["a\\"], ["a$", "a\\$"]),
        (r"a|^b|c$", ["xax", "bx", "xc"], ["xb", "cx"]),
        (r"[|^$]", ["x|", "$"], ["x"]),
        (r"^[^]$", ["x", "\n"], ["", "xx"]),
        (r"^\cJ$", ["\n"], ["J"]),
    ],
)
def test_a_pattern_is_read_as_ecma_does(pattern: str, texts: list[str], others: list[str]) -> None:
    whole = re.compile(whole_text(pattern))
    for text in texts:
        assert whole.fullmatch(text), text
    for text in others:
        assert not whole.fullmatch(text), text


def test_the_words_of_a_pattern() -> None:
    assert words_of("^(a|b-c)$") == ["a", "b-c"]
    assert words_of("^a$") == ["a"]
    assert words_of("^a") is None
    assert words_of("^a.$") is None
    assert in_rust("^{a}{2,3}[]$") == r"^\{a}{2,3}[^\s\S]$"


ZOD_EMAIL = (
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+"
    r"[A-Za-z]{2,}$"
)
AHEAD = [
    r"^(?!\.)[a-z.]+@[a-z]+\.[a-z]{2,}$", r"^(?!aws:)[a-zA-Z:]*$", ZOD_EMAIL,
    r"^(?=.{2,4}$)[ab]+", r"^(?!ab$)[ab]+$", r"^(?!a)", r"^(?=a|b).c",
]  # fmt: skip


@pytest.mark.parametrize("pattern", AHEAD)
def test_a_pattern_without_its_look_ahead_finds_the_same(pattern: str) -> None:
    rnd, split = random.Random(1), without_lookahead(pattern)
    assert split != [pattern]
    for _ in range(3000):
        text = "".join(rnd.choices("ab.:sw@cx", k=rnd.randint(0, 6)))
        matches = re.search(pattern, text) is not None
        assert all(re.search(part, text) for part in split) is matches, text


@pytest.mark.parametrize(
    "pattern", [r"^(?!ab|c)x", r"(?!a)b", r"^(?!a)b|c", r"^(?![a-z]*$)x", r"^(?!(a", r"^(?=a"]
)
def test_other_look_ahead_stays_and_is_refused(pattern: str) -> None:
    assert without_lookahead(pattern) == [pattern]
