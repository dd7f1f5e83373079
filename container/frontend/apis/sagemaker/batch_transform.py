"""Bodies of many records, as batch transform sends them: run together, answered in order.

What a client got wrong in a record is an error object in that record's place. What is the server's
fault fails the whole body, so that SageMaker tries it again instead of keeping a file of errors.
"""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import gevent
import gevent.pool
from flask import Response, copy_current_request_context, g

from container import content
from container.errors import InvalidParameter, Overloaded, RequestError
from container.frontend.observability.metrics import Metrics
from container.frontend.web import error_responses
from container.frontend.web.request_body import object_from
from container.frontend.web.responses import ClientDisconnected

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
        trace = g.get("trace")
        pool = gevent.pool.Pool(self._width)
        try:
            running = [
                # Waits while the pool is full. A greenlet's own context: `g` is of one record.
                pool.spawn(copy_current_request_context(self._one), line, answer, trace)
                for line in lines
            ]
            results = [greenlet.get() for greenlet in running]
        finally:
            pool.kill(timeout=KILL_WAIT_S)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def _one(self, line: bytes, answer: Answer, trace: object) -> bytes | Exception:
        """Answer one record; what fails the whole body is returned, not raised, to be quiet."""
        if trace is not None:
            g.trace = trace
        try:
            body = _read(line)
            while True:
                try:
                    return answer(body).get_data()
                except Overloaded:
                    gevent.sleep(PAUSE_S)
        except ClientDisconnected as gone:
            return gone
        except RequestError as error:
            self._metrics.count_failure(error)
            return error_responses.error_response(error).get_data()
        except Exception as error:
            return error


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
    """The text in an answer of either dialect, or its error."""
    if isinstance(answer, list):
        return str(answer[0]["generated_text"])
    if "choices" in answer:
        return str(answer["choices"][0]["message"]["content"] or "")
    error = answer["error"]
    return f"error: {error['message'] if isinstance(error, dict) else error}"
