"""All lines of the log have one form, those of libraries too."""

import json
import logging

import pytest
import transformers

from container import logs


def test_lines_of_transformers_have_our_form(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:]
    logs.configure("info", json_output=True)
    try:
        transformers.utils.logging.get_logger("transformers.some").warning("as %s", "ours")
    finally:
        logging.getLogger().handlers[:] = before
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == [
        "as ours"
    ]
