"""Bodies of many records, as batch transform sends them: run together, answered in order.

A client's error in a record is an error object in that record's place. A server's error fails the
whole body, so that SageMaker tries it again instead of keeping a file of errors.
"""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import gevent
import gevent.pool
from flask import Response

from container import content
from container.errors import InvalidParameter, Overloaded, RequestError
from container.frontend.observability.metrics import Metrics
from container.frontend.web import error_responses
from container.frontend.web.error_responses import ClientDisconnected, Dialect, DialectError
from container.frontend.web.request_body import object_from

Answer = Callable[[dict[str, Any]], Response]
# The engine is full with other bodies' records: try again after this.
PAUSE_S = 0.05
KILL_WAIT_S = 5.0


class BatchTransform:
    """Runs the records of one body side by side, `width` at a time."""

    def __init__(self, metrics: Metrics, width: int) -> None:
        self._metrics = metrics
        self._width = width

    def answer(self, lines: list[bytes], answer: Answer) -> list[bytes]:
        """Answer each line in one line of JSON. Raises the server's own faults, or
        ClientDisconnected.
        """
        pool = gevent.pool.Pool(self._width)
        try:
            running = [
                pool.spawn(self._record, line, answer)  # waits while the pool is full
                for line in lines
            ]
            results = [greenlet.get() for greenlet in running]
        finally:
            pool.kill(timeout=KILL_WAIT_S)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def _record(self, line: bytes, answer: Answer) -> bytes | Exception:
        """Answer one record, or return the error that fails the whole body.

        Raised in a greenlet, it would be written to the log.
        """
        try:
            return _answer_when_free(_read(line), answer)
        except ClientDisconnected as error:
            return error
        except Exception as error:
            cause, dialect = error_responses.split(error, Dialect.TGI)
            if not isinstance(cause, RequestError):
                return cause
            self._metrics.count_failure(cause)
            return error_responses.error_response(cause, dialect).get_data()


def _answer_when_free(body: dict[str, Any], answer: Answer) -> bytes:
    """Answer a body, again and again while the engine is full."""
    while True:
        try:
            return answer(body).get_data()
        except (Overloaded, DialectError) as error:
            if isinstance(error, DialectError) and not isinstance(error.error, Overloaded):
                raise
        gevent.sleep(PAUSE_S)


def render(answers: list[bytes], kind: str) -> bytes:
    """Write answers, each JSON, as one body: lines, an array, or their texts alone."""
    if kind == content.JSON_LINES:
        return b"".join(answer + b"\n" for answer in answers)
    if kind == content.JSON:
        return b"[" + b",".join(answers) + b"]"
    texts = [_text(json.loads(answer)) for answer in answers]
    if kind == content.TEXT:
        return "\n".join(texts).encode()
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["generated_text"])
    writer.writerows([text] for text in texts)
    return out.getvalue().encode()


def _read(line: bytes) -> dict[str, Any]:
    if line.lstrip()[:1] == b'"':
        line = b'{"inputs":' + line + b"}"
    body = object_from(line, "the line")
    if body.get("stream"):
        raise InvalidParameter("`stream`: one record of many cannot stream", field="stream")
    return body


def _text(answer: Any) -> str:
    """The text in an answer of any dialect, or its error."""
    if isinstance(answer, list):
        return str(answer[0]["generated_text"])
    if "choices" in answer:
        choice = answer["choices"][0]
        return str((choice["message"]["content"] if "message" in choice else choice["text"]) or "")
    if "content" in answer:  # Anthropic's
        return "".join(block.get("text", "") for block in answer["content"])
    error = answer["error"]
    return f"error: {error['message'] if isinstance(error, dict) else error}"
