"""Bodies of many records, as batch transform sends them: run together, answered in order.

A client's error in a record is an error object in that record's place. A server's error fails the
whole body, so that SageMaker tries it again instead of keeping a file of errors. At the body's
deadline the records that run are answered as far as they are, and the rest have its error.
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
from container.frontend.apis.sagemaker.batch_share import BatchShare
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.request_context import RequestContext
from container.frontend.web import error_responses
from container.frontend.web.error_responses import Dialect, DialectError
from container.frontend.web.request_body import object_from
from container.frontend.web.responses import DEADLINE_HEADER, watch_wait

Answer = Callable[[dict[str, Any]], Response]
Record = bytes | str  # a line of JSON, or a prompt
# The engine has no place for a record, since other frontends have taken the share: try again.
PAUSE_S = 0.05
KILL_WAIT_S = 5.0


@dataclass(slots=True)
class BatchAnswers:
    """The answers to one body, a line of JSON for each record, and whether the deadline cut any.

    `failures` are the server's own errors.
    """

    lines: list[bytes] = field(default_factory=list)
    is_cut: bool = False
    failures: list[Exception] = field(default_factory=list)


class BatchTransform:
    """Runs the records of bodies side by side, as many as the share of all bodies allows."""

    def __init__(self, share: BatchShare) -> None:
        self._share = share

    def answer(
        self, records: Iterable[Record], answer: Answer, context: RequestContext
    ) -> BatchAnswers:
        """Answer each record. Raises the server's own faults, or ClientDisconnected."""
        places = self._share.new_body()
        on_wait = watch_wait(context)
        answers = BatchAnswers()
        running = gevent.pool.Group()
        try:
            for index, record in enumerate(in_pieces(records)):
                if answers.failures:
                    break
                answers.lines.append(b"")
                try:
                    places.acquire(on_wait)
                except DeadlineExceeded as error:
                    self._refuse(answers, index, error)
                    continue
                greenlet = running.spawn(self._run, record, index, answer, answers)
                greenlet.link(places.release)  # also if it is killed before it has begun
            running.join()
        finally:
            running.kill(timeout=KILL_WAIT_S)
        if answers.failures:
            raise answers.failures[0]
        return answers

    def _run(
        self,
        record: Record,
        index: int,
        answer: Answer,
        answers: BatchAnswers,
    ) -> None:
        """Answer one record, or note the error; raised in a greenlet, it would only be logged."""
        try:
            response = _answer_when_free(_read(record), answer)
            answers.lines[index] = response.get_data()
            answers.is_cut |= DEADLINE_HEADER in response.headers
        except Exception as error:
            self._refuse(answers, index, error)

    def _refuse(self, answers: BatchAnswers, index: int, error: Exception) -> None:
        cause, dialect = error_responses.split(error, Dialect.TGI)
        if not isinstance(cause, RequestError | DeadlineExceeded):
            answers.failures.append(cause)
            return
        answers.is_cut |= isinstance(cause, DeadlineExceeded)
        answers.lines[index] = error_responses.error_response(cause, dialect).get_data()


def _answer_when_free(body: dict[str, Any], answer: Answer) -> Response:
    """Answer a body, again and again while the engine is full."""
    while True:
        try:
            return answer(body)
        except (Overloaded, DialectError) as error:
            if isinstance(error, DialectError) and not isinstance(error.error, Overloaded):
                raise
        gevent.sleep(PAUSE_S)


def render(answers: list[bytes], kind: str, *, has_header: bool = True) -> bytes:
    """Write answers, each JSON, as one body: lines, an array, or their texts alone.

    An answer with several choices has a text, or a row of CSV, for each. `has_header` is whether
    CSV begins with the name of its column.
    """
    if kind == content.JSON_LINES:
        return b"".join(answer + b"\n" for answer in in_pieces(answers))
    if kind == content.JSON:
        return b"[" + b",".join(answers) + b"]"
    texts = [text for answer in in_pieces(answers) for text in _texts(json.loads(answer))]
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
