"""Requests that schemathesis makes from the server's own description, sound ones and others."""

import json
from collections.abc import Iterator
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from requests.structures import CaseInsensitiveDict
from schemathesis.core import NOT_SET

from benchmarks.chaos.raw_http import request
from benchmarks.fuzz.bodies import Case
from container.frontend.apis.docs.openapi import document


def schema_cases(first_seed: int, count: int) -> Iterator[Case]:
    """Make about `count` cases, spread over all operations."""
    operations = [
        each.ok() for each in schemathesis.openapi.from_dict(document()).get_all_operations()
    ]
    for_each = max(1, count // len(operations))
    for operation in operations:
        yield from _cases(operation, first_seed, for_each)


def _cases(operation: Any, first_seed: int, count: int) -> list[Case]:
    collected: list[Case] = []

    @seed(first_seed)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def collect(case: Any) -> None:
        collected.append(_written(case, f"{operation.label}-{len(collected)}"))

    collect()
    return collected


def _written(case: Any, name: str) -> Case:
    body = b"" if case.body is NOT_SET else _encode(case.body)
    headers = CaseInsensitiveDict(case.headers or {})
    if case.media_type:
        headers["Content-Type"] = case.media_type
    return Case(name, request(case.method, case.formatted_path, body, dict(headers)))


def _encode(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode(errors="replace")
    return json.dumps(body).encode()
