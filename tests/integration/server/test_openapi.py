"""The API's description, and schemathesis holding the server to it."""

import re
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from container.frontend.apis.docs.openapi import document
from tests.support.servers import Server, serving

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of short answers, so that many requests fit into the time of a test."""
    with serving(tmp_path_factory.mktemp("described") / "log", MAX_TOTAL_TOKENS="48") as running:
        yield running


@schemathesis.serializer("application/jsonlines")
def _as_it_is(_: object, value: object) -> bytes:
    return str(value).encode(errors="replace")


API = schemathesis.openapi.from_dict(document())


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of connections that schemathesis keeps
@API.parametrize()
@settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_random_requests_get_documented_responses(
    described: Server, case: schemathesis.Case
) -> None:
    case.call_and_validate(base_url=described.url, checks=CHECKS, timeout=30)


def test_the_page_needs_nothing_from_elsewhere(described: Server) -> None:
    page = requests.get(f"{described.url}/docs", timeout=10)
    assert page.ok
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert "http" not in page.text.replace(described.url, "")
    parts = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(parts) >= 4
    for part in parts:
        assert requests.get(f"{described.url}{part}", timeout=10).ok


def test_tgis_name_for_the_document_works_too(described: Server) -> None:
    documents = [
        requests.get(f"{described.url}{path}", timeout=10).json()
        for path in ("/openapi.json", "/api-doc/openapi.json")
    ]
    assert documents == [document(), document()]
