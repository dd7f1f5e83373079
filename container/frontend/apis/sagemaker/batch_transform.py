"""Bodies of many records, as batch transform sends them: run together, answered in order.

A client's error in a record becomes an error object on that record's line. A server's error fails
the whole body, so that SageMaker retries it instead of storing a file of errors. At the body's
deadline, running records are answered with their text so far, and the rest with an error.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import gevent
import gevent.pool
from flask import Response

from container import content
from container.errors import DeadlineExceeded, InvalidParameter, Overloaded, RequestError
from container.frontend.apis.sagemaker.batch_slots import BatchSlots
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.request_context import RequestContext
from container.frontend.web import error_responses
from container.frontend.web.error_responses import Dialect, DialectError
from container.frontend.web.request_body import object_from
from container.frontend.web.responses import DEADLINE_HEADER, watch_wait

Answer = Callable[[dict[str, Any]], Response]
Record = bytes | str  # a line of JSON, or a prompt
# The engine is full, since other frontends have taken its slots: try again after this.
PAUSE_S = 0.05
KILL_WAIT_S = 5.0


@dataclass(slots=True)
class BatchResponse:
    """The response to one body: a line of JSON for each record.

    `is_cut`: the deadline has cut a record. `failures` are the server's own errors.
    """

    lines: list[bytes] = field(default_factory=list)
    is_cut: bool = False
    failures: list[Exception] = field(default_factory=list)


class BatchTransform:
    """Runs the records of bodies concurrently, as many as there are slots."""

    def __init__(self, slots: BatchSlots) -> None:
        self._slots = slots

    def answer(
        self, records: Iterable[Record], answer: Answer, context: RequestContext
    ) -> BatchResponse:
        """Answer each record. Raises the server's own errors, or ClientDisconnected."""
        body_slots = self._slots.new_body()
        on_wait = watch_wait(context)
        batch = BatchResponse()
        running = gevent.pool.Group()
        try:
            for index, record in enumerate(in_pieces(records)):
                if batch.failures:
                    break
                batch.lines.append(b"")
                try:
                    body_slots.acquire(on_wait)
                except DeadlineExceeded as error:
                    self._refuse(batch, index, error)
                    continue
                greenlet = running.spawn(self._run, record, index, answer, batch)
                greenlet.link(body_slots.release)  # also if it is killed before it has begun
            running.join()
        finally:
            running.kill(timeout=KILL_WAIT_S)
        if batch.failures:
            raise batch.failures[0]
        return batch

    def _run(
        self,
        record: Record,
        index: int,
        answer: Answer,
        batch: BatchResponse,
    ) -> None:
        """Answer one record, or note the error; raised in a greenlet, it would only be logged."""
        try:
            response = _answer_when_free(_read(record), answer)
            batch.lines[index] = response.get_data()
            batch.is_cut |= DEADLINE_HEADER in response.headers
        except Exception as error:
            self._refuse(batch, index, error)

    def _refuse(self, batch: BatchResponse, index: int, error: Exception) -> None:
        cause, dialect = error_responses.split(error, Dialect.TGI)
        if not isinstance(cause, RequestError | DeadlineExceeded):
            batch.failures.append(cause)
            return
        batch.is_cut |= isinstance(cause, DeadlineExceeded)
        batch.lines[index] = error_responses.error_response(cause, dialect).get_data()


def _answer_when_free(body: dict[str, Any], answer: Answer) -> Response:
    """Answer a body, again and again while the engine is full."""
    while True:
        try:
            return answer(body)
        except (Overloaded, DialectError) as error:
            if isinstance(error, DialectError) and not isinstance(error.error, Overloaded):
                raise
        gevent.sleep(PAUSE_S)


def render(lines: list[bytes], kind: str, *, has_header: bool = True) -> bytes:
    """Write answers, each JSON, as one body: lines, an array, or their texts alone.

    An answer with several choices has a text, or a row of CSV, for each. `has_header` is whether
    CSV begins with the name of its column.
    """
    if kind == content.JSON_LINES:
        return b"".join(answer + b"\n" for answer in in_pieces(lines))
    if kind == content.JSON:
        return b"[" + b",".join(lines) + b"]"
    texts = [text for answer in in_pieces(lines) for text in _texts(json.loads(answer))]
    if kind == content.TEXT:
        return "\n".join(texts).encode()
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if has_header:
        writer.writerow(["generated_text"])
    for text in in_pieces(texts):
        writer.writerow([text])
    return out.getvalue().encode()


def _read(record: Record) -> dict[str, Any]:
    if isinstance(record, str):
        return {"inputs": record}
    if record.lstrip()[:1] == b'"':
        record = b'{"inputs":' + record + b"}"
    body = object_from(record, "the line")
    if body.get("stream"):
        raise InvalidParameter("`stream`: one record of many cannot stream", field="stream")
    return body


def _texts(answer: Any) -> list[str]:
    """Return the texts in an answer of any dialect that generates, or its error."""
    if isinstance(answer, list):
        return [str(generation["generated_text"]) for generation in answer]
    if "choices" in answer:
        return [_choice_text(choice) for choice in answer["choices"]]
    if "content" in answer:  # Anthropic's
        return ["".join(block.get("text", "") for block in answer["content"])]
    error = answer["error"]
    return [f"error: {error['message'] if isinstance(error, dict) else error}"]


def _choice_text(choice: dict[str, Any]) -> str:
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    return str(text or "")  # a message that only calls tools has none
