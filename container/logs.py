"""Logging: one JSON object per line for machines, short lines for a terminal."""

import json
import logging
import os
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

# SageMaker's Inference-Id of the current request, if it has one.
inference_id: ContextVar[str | None] = ContextVar("inference_id", default=None)
FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
# Clears the line of a terminal, which may show how far the start is.
CLEAR_LINE = "\r\033[K"

# The frames of a traceback that are logged: the last ones.
MAX_FRAMES = 100


class BoundedTracebacks(logging.Formatter):
    """Renders a record as text, and of a long traceback its end, since each frame takes time."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        """Render an exception."""
        return "".join(traceback.format_exception(*ei, limit=-MAX_FRAMES)).rstrip("\n")


class JsonLines(BoundedTracebacks):
    """Renders a record as one JSON line with `timestamp`, `level`, `logger`, `message`."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_inference_id := inference_id.get()) is not None:
            line["inference_id"] = request_inference_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def is_for_person(*, json_output: bool | None) -> bool:
    """Whether a person reads the log: it goes to a terminal, and is not JSON."""
    return not json_output and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def configure(level: str, *, json_output: bool | None) -> None:
    """Log to stderr. `json_output` None: JSON unless stderr is a terminal."""
    as_json = not sys.stderr.isatty() if json_output is None else json_output
    handler = logging.StreamHandler(sys.stderr)
    line = (CLEAR_LINE if is_for_person(json_output=json_output) else "") + FORMAT
    handler.setFormatter(JsonLines() if as_json else BoundedTracebacks(line, "%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # transformers, once imported, has a handler of its own, whose lines have another form.
    library = logging.getLogger("transformers")
    library.handlers.clear()
    library.propagate = True
    for noisy in ("httpx", "urllib3", "filelock", "huggingface_hub", "sentence_transformers"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
