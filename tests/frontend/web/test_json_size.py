"""Bodies of millions of values are refused by a count, before they are parsed."""

import time

import pytest

from container.content import decode
from container.errors import MalformedRequest
from container.frontend.web.request_body import object_from

MANY = {
    "lists": "[],",
    "objects": "{},",
    "objects with members": '{"a":1},',
    "numbers": "5,",
    "strings": '"",',
    "strings with escapes": '"\\\\\\"",',
}


@pytest.mark.parametrize("kind", MANY)
def test_too_many_values_are_refused_before_they_are_parsed(kind: str) -> None:
    body = ('{"a":[' + MANY[kind] * 2_100_000 + "0]}").encode()
    started = time.monotonic()
    with pytest.raises(MalformedRequest, match="more than 100000 lists and objects"):
        object_from(body)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("written", ["[{,", '\\"[{,', "\\\\[{,", "\u5b5b,\u7b7b"])
def test_signs_in_strings_are_no_values(written: str) -> None:
    text = f'{{"inputs": "{written * 800_000}"}}'
    for encoding in ("utf-8", "utf-16"):
        assert len(object_from(text.encode(encoding))["inputs"]) >= 1_600_000


def test_what_users_code_reads_is_not_bounded() -> None:
    body = ("[" + "[]," * 150_000 + "0]").encode()
    assert len(decode(body, "application/json")) == 150_001


def test_an_object_of_too_many_members_is_refused() -> None:
    members = ",".join(f'"{number}":1' for number in range(200_002))
    with pytest.raises(MalformedRequest, match="200000 members of objects"):
        object_from(f'{{"logit_bias":{{{members}}}}}'.encode())
    times = '{"inputs":"' + "12:30:59 " * 150_000 + '"}'
    assert len(object_from(times.encode())["inputs"]) == 9 * 150_000
