import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_deploy import invoke
from sagemaker_deploy.errors import InvocationFailed

EVENTS = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"content": "Hällo"}}]},
    {"choices": [{"delta": {"content": " you"}}]},
    {"choices": [], "usage": {"completion_tokens": 2}},
]
STREAM = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in EVENTS)


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12))
def test_a_stream_cut_anywhere_gives_the_same_text(cuts: list[int]) -> None:
    edges = [0, *sorted(set(cuts)), len(STREAM)]
    parts = [STREAM[start:end] for start, end in itertools.pairwise(edges)]
    assert "".join(invoke.stream_text(parts)) == "Hällo you"


def test_the_last_line_needs_no_newline() -> None:
    assert "".join(invoke.stream_text([STREAM.rstrip()])) == "Hällo you"


def test_tgis_events_are_read_without_special_tokens() -> None:
    tokens = [{"text": "Hi", "special": False}, {"text": "</s>", "special": True}]
    stream = b"".join(
        b"data:" + json.dumps({"token": token}).encode() + b"\n\n" for token in tokens
    )
    assert list(invoke.stream_text([stream])) == ["Hi"]


@pytest.mark.parametrize("error", ['{"message": "engine gone"}', '"engine gone"'])
def test_an_error_event_is_an_error(error: str) -> None:
    stream = f'data: {{"error": {error}}}\n\n'.encode()
    with pytest.raises(InvocationFailed, match="engine gone"):
        list(invoke.stream_text([stream]))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'[{"generated_text": "a"}]', "a"),
        (b'{"generated_text": "a"}', "a"),
        (b'{"choices": [{"message": {"content": "a"}}]}', "a"),
        (b'{"choices": [{"text": "a"}]}', "a"),
        (b"plain", None),
        (b'{"label": "x"}', None),
    ],
)
def test_the_text_of_each_response_format(body: bytes, text: str | None) -> None:
    assert invoke.text_of(body) == text
