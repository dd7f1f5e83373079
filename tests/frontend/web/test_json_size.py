"""Bodies of millions of values are refused by a count, before they are parsed."""

import time

import pytest

from container.content import decode
from container.errors import MalformedRequest
from container.frontend.web.request_body import object_from

MANY = {
    "lists": ("[],", "4100002 lists and objects; the limit is 100000"),
    "objects": ("{},", "4100002 lists and objects; the limit is 100000"),
    "objects with members": ('{"a":1},', "4100001 strings; the limit is 1000000"),
    "numbers": ("5,", "4100000 commas between values; the limit is 4000000"),
    "strings": ('"",', "4100001 strings; the limit is 1000000"),
    "strings with escapes": ('"\\\\\\"",', "4100001 strings; the limit is 1000000"),
}


@pytest.mark.parametrize("kind", MANY)
def test_too_many_values_are_refused_before_they_are_parsed(kind: str) -> None:
    value, message = MANY[kind]
    body = ('{"a":[' + value * 4_100_000 + "0]}").encode()
    started = time.process_time()
    with pytest.raises(MalformedRequest, match=f"the body has {message}; send less"):
        object_from(body)
    assert time.process_time() - started < 5


def test_as_many_token_ids_as_there_may_be_inputs_are_read() -> None:
    written = ",".join(["[" + ",".join(["50256"] * 1500) + "]"] * 2048)
    assert len(object_from(f'{{"input":[{written}]}}'.encode())["input"]) == 2048


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
    with pytest.raises(MalformedRequest, match="200003 members of objects; the limit is 200000"):
        object_from(f'{{"logit_bias":{{{members}}}}}'.encode())
    times = '{"inputs":"' + "12:30:59 " * 150_000 + '"}'
    assert len(object_from(times.encode())["inputs"]) == 9 * 150_000
