"""Bodies that end before they are whole."""

import pytest
from flask import Request
from werkzeug.test import EnvironBuilder

from container.errors import MalformedRequest
from container.frontend.web.request_body import read_bytes


class Broken:
    """A stream whose connection is reset."""

    def read(self, size: int = -1) -> bytes:
        raise ConnectionResetError


def test_a_reset_during_the_body_is_a_client_error() -> None:
    environ = EnvironBuilder(method="POST", data=b"x" * 100).get_environ()
    environ["wsgi.input"] = Broken()
    with pytest.raises(MalformedRequest, match="ended before the body was whole"):
        read_bytes(Request(environ))
