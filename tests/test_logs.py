"""All lines of the log have one form, those of libraries too."""

import json
import logging
import warnings

import pytest
import transformers

from container import logs


def test_lines_of_transformers_have_our_form(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:]
    logs.configure("info", json_output=True)
    try:
        transformers.utils.logging.get_logger("transformers.some").warning("as %s", "ours")
    finally:
        logging.captureWarnings(False)
        logging.getLogger().handlers[:] = before
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == [
        "as ours"
    ]


@pytest.mark.filterwarnings("default:corrupt")
def test_warnings_of_python_have_our_form(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:]
    logs.configure("info", json_output=True)
    try:
        warnings.warn("corrupt EXIF data", stacklevel=1)
    finally:
        logging.captureWarnings(False)
        logging.getLogger().handlers[:] = before
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["logger"] == "py.warnings"
    assert "corrupt EXIF data" in json.loads(line)["message"]


@pytest.mark.parametrize("formatter", [logs.JsonLines(), logs.BoundedTracebacks(logs.FORMAT)])
def test_a_long_traceback_is_logged_by_its_end(formatter: logging.Formatter) -> None:
    def recurse(depth: int) -> None:
        if depth == 0:
            raise ValueError("at the bottom")
        again(depth - 1)

    def again(depth: int) -> None:  # equal lines in a row would be counted instead of written
        recurse(depth)

    try:
        recurse(300)
    except ValueError as error:
        cause = (type(error), error, error.__traceback__)
        record = logging.LogRecord("a", logging.ERROR, "", 0, "failed", (), cause)
    text = formatter.format(record)
    assert "at the bottom" in text
    assert text.count("in recurse") <= logs.MAX_FRAMES
