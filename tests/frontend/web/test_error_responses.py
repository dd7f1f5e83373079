import json

import pytest
from flask import Flask
from werkzeug.exceptions import RequestEntityTooLarge

from container import errors
from container.frontend.web import error_responses

START_UP = {errors.ConfigError, errors.ModelLoadError}
SERVED = [leaf for leaf in errors.leaves() if leaf not in START_UP]


@pytest.mark.parametrize("leaf", SERVED)
def test_every_error_has_a_form_in_each_dialect(leaf: type[errors.ServingError]) -> None:
    error = leaf("the reason", field="f")
    assert "the reason" in error_responses.tgi_body(error)["error"]
    assert "the reason" in error_responses.tei_body(error)["error"]
    assert error_responses.openai_body(error)["error"]["message"] == "the reason"
    assert error_responses.anthropic_body(error)["error"]["message"] == "the reason"


def test_the_tables_have_nothing_else() -> None:
    assert (
        set(error_responses.TGI)
        == set(error_responses.OPENAI)
        == set(error_responses.TEI)
        == set(error_responses.ANTHROPIC)
        == set(SERVED)
    )


def test_an_unexpected_error_shows_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    shown = error_responses.to_client_error(RuntimeError("secret path"))
    assert isinstance(shown, errors.InternalError)
    assert "secret" not in shown.message
    assert "secret path" in caplog.text


def test_too_deep_a_body_is_the_clients_fault() -> None:
    shown = error_responses.to_client_error(RecursionError("in a frame"))
    assert isinstance(shown, errors.MalformedRequest)
    assert shown.message == "the body is nested too deeply"


def test_a_large_body_is_the_clients_fault() -> None:
    app = Flask("test")
    app.config["MAX_CONTENT_LENGTH"] = 25_000_000
    with app.test_request_context():
        shown = error_responses.to_client_error(RequestEntityTooLarge())
    assert isinstance(shown, errors.PayloadTooLarge)
    assert "25,000,000" in shown.message or "25000000" in shown.message


@pytest.mark.parametrize("text", ["a" * 9000, "\x01" * 9000, "ä" * 500, "𝄞" * 300, "a" * 20, ""])
def test_a_long_text_loses_its_middle(text: str) -> None:
    shown = error_responses.shorten(text)
    assert len(json.dumps(shown, ensure_ascii=False).encode()) <= error_responses.MESSAGE_BYTES
    assert shown == text or " ... " in shown
    assert shown[:10] == text[:10]
    assert shown[-10:] == text[-10:]
