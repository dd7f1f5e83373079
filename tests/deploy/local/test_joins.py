"""Joining a transform job's answers with its input."""

import json

import pytest

from sagemaker_deploy.local.control_plane import joins
from sagemaker_deploy.local.refusals import Refusal


def test_joined_json_is_an_object_with_input_and_output() -> None:
    joined = joins.with_input(
        b'{"inputs": "a"}\n\n"b"\n', b'{"x": 1}\n[2]\n', "application/jsonlines"
    )
    assert [json.loads(line) for line in joined.splitlines()] == [
        {"inputs": "a", "SageMakerOutput": {"x": 1}},
        {"SageMakerInput": "b", "SageMakerOutput": [2]},
    ]


def test_lines_that_do_not_match_fail() -> None:
    with pytest.raises(ValueError, match="2 lines of input have 1 lines of answers"):
        joins.with_input(b"a\nb\n", b"c\n", "text/csv")


@pytest.mark.parametrize(
    ("source", "output", "complaint"),
    [
        ({}, {"AssembleWith": "Line"}, "SplitType"),
        ({"SplitType": "Line"}, {}, "AssembleWith"),
        (
            {"SplitType": "Line", "ContentType": "text/csv"},
            {"AssembleWith": "Line", "Accept": "application/jsonlines"},
            "one format",
        ),
    ],
)
def test_joins_that_the_service_refuses_are_refused(
    source: dict[str, str], output: dict[str, str], complaint: str
) -> None:
    job = {"TransformInput": source, "TransformOutput": output}
    with pytest.raises(Refusal, match=complaint):
        joins.check_processing(job | {"DataProcessing": {"JoinSource": "Input"}})


def test_a_record_of_an_answer_may_have_line_breaks() -> None:
    outputs = b'generated_text\n"one\ntwo"\n'
    joined = joins.with_input(b"inputs\na\n", outputs, "text/csv")
    assert joined == b'inputs,generated_text\na,"one\ntwo"\n'
