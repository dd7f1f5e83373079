"""The questions of `benchmarks.answers`, their checkers, and the comparison of two sides."""

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.questions import agreement, checkers

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "benchmarks" / "questions" / "questions.jsonl").read_text().splitlines()
QUESTIONS = [json.loads(line) for line in LINES]


def test_there_are_200_questions_and_none_twice():
    assert len(QUESTIONS) == 200
    assert len({question["id"] for question in QUESTIONS}) == 200
    assert len({question["prompt"] for question in QUESTIONS}) == 200


def test_every_category_has_as_many_questions():
    categories = Counter(question["category"] for question in QUESTIONS)
    assert categories == {"arithmetic": 50, "facts": 50, "json": 50, "format": 50}


def test_every_question_has_a_length_limit():
    assert all(8 <= question["max_tokens"] <= 128 for question in QUESTIONS)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["id"])
def test_a_checker_tells_good_answers_from_bad(question):
    assert checkers.is_right(question["check"], question["good"])
    assert not checkers.is_right(question["check"], question["bad"])


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["id"])
def test_an_empty_answer_is_never_right(question):
    assert not checkers.is_right(question["check"], "")


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("7 + 5 = 12.", 12),
        ("It costs 1,250 euros", 1250),
        ("\N{MINUS SIGN}5", -5),
        ("-5", -5),
        ("12-5", 5),
        ("**30**", 30),
        ("0.75", 0.75),
    ],
)
def test_the_last_number_of_an_answer_counts(answer, value):
    assert checkers.is_right({"kind": "number", "value": value}, answer)


@pytest.mark.parametrize(
    "answer",
    ['{"a": 1} and more', "{'a': 1}", '{"a": true}', '{"a": "1"}', '[{"a": 1}]', '{"b": 1}'],
)
def test_json_of_another_shape_is_refused(answer):
    check = {"kind": "json", "shape": {"keys": {"a": "number"}}}
    assert checkers.is_right(check, '{"a": 1}')
    assert not checkers.is_right(check, answer)


def test_equal_sides_are_the_same():
    same = agreement.compare([True, False], [True, False], [True, True])
    assert (same.score, same.same_verdict, same.identical) == (0.5, 1.0, 1.0)
    assert same.verdict == agreement.SAME


def test_a_few_answers_that_differ_both_ways_are_noise():
    served = [True] * 3 + [False] * 5 + [True] * 92
    reference = [False] * 3 + [True] * 5 + [True] * 92
    assert agreement.compare(served, reference, [False] * 100).verdict == agreement.SAME


def test_many_answers_worse_than_the_reference_fail():
    served, reference = [False] * 8 + [True] * 92, [True] * 100
    worse = agreement.compare(served, reference, [False] * 100)
    assert worse.verdict == agreement.WORSE
    assert worse.difference[1] < 0
    assert agreement.compare(reference, served, [False] * 100).verdict == agreement.BETTER


def test_the_binomial_test_is_exact():
    assert agreement.binomial_p_value(0, 0) == 1.0
    assert agreement.binomial_p_value(0, 5) == pytest.approx(2 / 32)
    assert agreement.binomial_p_value(2, 8) == pytest.approx(2 * (1 + 8 + 28) / 256)
