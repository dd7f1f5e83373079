"""SageMaker's `/invocations` and `/execution-parameters`.

Tells the shapes of bodies apart and hands each to its own dialect. `messages_api` True takes
messages only, False generate only, None both. A body that has `inputs` is a generate request even
if it has `messages` too, as in TGI. User code, where there is some, answers in their place.
Where only an embedding or rerank model is served, `inputs` is TEI's; beside a language model
`input` (OpenAI's embeddings), `texts` (Cohere's embeddings, or a rerank with `query`) and
`documents` (rerank) still go to it.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Flask, Response, request

from container import body_lines, content, logs
from container.errors import InvalidParameter, MalformedRequest, RequestError, UnsupportedMediaType
from container.frontend.apis.anthropic.messages import AnthropicDialect
from container.frontend.apis.anthropic.schema import is_messages_body
from container.frontend.apis.embeddings.openai import EmbeddingsDialect
from container.frontend.apis.openai.chat import OpenAIDialect
from container.frontend.apis.openai.completions import CompletionsDialect
from container.frontend.apis.sagemaker.batch_transform import BatchTransform, Record, render
from container.frontend.apis.sagemaker.routing import answer_on, chosen_route
from container.frontend.apis.sagemaker.user_code import HandlerDialect
from container.frontend.apis.tei.routes import TeiDialect
from container.frontend.apis.tgi.generate import TgiDialect
from container.frontend.generation.offloading import in_pieces
from container.frontend.generation.request_context import RequestContext
from container.frontend.web.error_responses import Dialect, errors_in
from container.frontend.web.http_request import request_context
from container.frontend.web.replay_info import CUSTOM_ATTRIBUTES
from container.frontend.web.request_body import object_from, read_bytes, read_object
from container.frontend.web.responses import DEADLINE_HEADER, answer_headers, json_response
from container.settings.server import SageMakerSettings

INFERENCE_ID = "X-Amzn-SageMaker-Inference-Id"
# Of a body of CSV or JSON Lines; the text and the answer of each stay in memory until all end.
MAX_RECORDS = 1_000_000
READ_TYPES = (content.JSON, content.JSON_LINES, content.TEXT, content.CSV)
WRITTEN_TYPES = (content.JSON, content.JSON_LINES, content.TEXT, content.CSV)
# Vectors and scores are no texts.
WRITTEN_NUMBER_TYPES = (content.JSON, content.JSON_LINES)

# SageMaker refuses a job whose payload limit times its concurrency is more.
MAX_BATCH_MB = 100
# While one body's last records are answered, the next one's run already.
TRANSFORMS = 2


@dataclass(frozen=True, slots=True)
class BatchParameters:
    """SageMaker's parameters of a batch transform job, as `/execution-parameters` answers them."""

    max_transforms: int
    strategy: str
    max_payload_mb: int

    @classmethod
    def from_settings(
        cls, settings: SageMakerSettings, body_limit: int, max_concurrent_requests: int
    ) -> "BatchParameters":
        """Choose the concurrency: a few bodies of many records, or many of single records."""
        strategy = (settings.batch_strategy or "multi_record").upper()
        largest_mb = max(1, body_limit // 2**20)
        num_transforms = max_concurrent_requests if strategy == "SINGLE_RECORD" else TRANSFORMS
        most = max(1, min(num_transforms, MAX_BATCH_MB // largest_mb))
        return cls(settings.max_transforms or most, strategy, largest_mb)


class TextInvocations:
    """Answers bodies for an embedding or rerank model, recognised by their fields."""

    def __init__(self, embeddings: EmbeddingsDialect, tei: TeiDialect, *, has_engine: bool) -> None:
        self._embeddings = embeddings
        self._tei = tei
        self._has_engine = has_engine

    @property
    def is_alone(self) -> bool:
        """Whether there is no language model that other bodies could be for."""
        return not self._has_engine

    def takes(self, body: dict[str, Any]) -> bool:
        """Return whether a body is for this model, not for the language model."""
        is_embed = "input" in body and "messages" not in body
        return self.is_alone or "documents" in body or "texts" in body or is_embed

    def answer(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer a body that `takes` returns true for."""
        if "documents" in body:
            with errors_in(Dialect.OPENAI):
                return self._embeddings.rerank(body, context)
        if "texts" in body and "query" not in body:
            with errors_in(Dialect.OPENAI):
                return self._embeddings.embed_by_types(body, context)
        if "input" in body and "messages" not in body:
            with errors_in(Dialect.OPENAI):
                return self._embeddings.embed(body, context)
        return self._tei.by_kind(body, context)


class Invocations:
    """Answers bodies for the built-in engine."""

    def __init__(
        self,
        tgi: TgiDialect,
        openai: OpenAIDialect,
        completions: CompletionsDialect,
        anthropic: AnthropicDialect,
        batch_transform: BatchTransform,
        texts: TextInvocations | None,
        *,
        messages_api: bool | None,
        default_accept: str = content.JSON,
        is_batch: bool = False,
    ) -> None:
        self._tgi = tgi
        self._openai = openai
        self._completions = completions
        self._anthropic = anthropic
        self._batch_transform = batch_transform
        self._texts = texts
        self._messages_api = messages_api
        self._default_accept = default_accept
        self._is_batch = is_batch

    def invoke(self, context: RequestContext) -> Response:
        """Answer the current request, on the route that its custom attributes choose, if any."""
        path = chosen_route(request.headers.get(CUSTOM_ATTRIBUTES, ""))
        if path is not None:
            return answer_on(path)
        with errors_in(Dialect.OPENAI if self._messages_api else Dialect.TGI):
            return self._invoke(context)

    def _invoke(self, context: RequestContext) -> Response:
        kind = content.media_type(request.headers.get("Content-Type", ""))
        if kind not in READ_TYPES:
            raise UnsupportedMediaType(
                f"content type {kind!r} is not supported; send the header 'Content-Type: "
                f"application/json' (or one of {', '.join(READ_TYPES[1:])})"
            )
        if kind in (content.JSON_LINES, content.CSV):
            return self._many(kind, context)
        body = read_object(request) if kind == content.JSON else _text_body()
        if body.get("stream") is True:
            return self.answer(body, context)
        is_numbers = self._texts is not None and self._texts.takes(body)
        accept = _choose(self._default_accept, is_numbers=is_numbers)
        response = self.answer(body, context)
        if accept == content.JSON:
            return response
        headers = answer_headers(is_cut=DEADLINE_HEADER in response.headers)
        return Response(render([response.get_data()], accept), content_type=accept, headers=headers)

    def answer(self, body: dict[str, Any], context: RequestContext) -> Response:
        """Answer one body in the dialect of its shape."""
        if self._texts is not None and self._texts.takes(body):
            return self._texts.answer(body, context)
        if self._is_chat(body):
            if is_messages_body(body):
                with errors_in(Dialect.ANTHROPIC):
                    return self._anthropic.create(body, context)
            with errors_in(Dialect.OPENAI):
                return self._openai.chat(body, context)
        if "inputs" not in body and self._messages_api is None:
            with errors_in(Dialect.OPENAI):
                return self._completions.complete(body, context)
        return self._tgi.generate(body, context, streams=None, as_array=True, echo_default=True)

    def dialect_of_refused(self, raw: bytes) -> Dialect:
        """Return the dialect that a body for the language model is refused in."""
        dialect = Dialect.OPENAI if self._messages_api else Dialect.TGI
        with contextlib.suppress(RequestError):
            body = object_from(raw)
            if self._is_chat(body):
                return Dialect.ANTHROPIC if is_messages_body(body) else Dialect.OPENAI
            if "inputs" not in body and self._messages_api is None:
                return Dialect.OPENAI
        return dialect

    def _many(self, kind: str, context: RequestContext) -> Response:
        raw = read_bytes(request)
        # A batch transform cuts a file into bodies, and only the first one has the file's header.
        has_header = not self._is_batch or kind != content.CSV or body_lines.has_csv_header(raw)
        records: Sequence[Record] = (
            _texts(raw, has_header=has_header)
            if kind == content.CSV
            else body_lines.read_lines(raw, pieces=in_pieces)
        )
        _check_number(records)
        if not records and not (self._is_batch and kind == content.CSV):  # but a header line alone
            raise MalformedRequest("the body has no records")
        is_numbers = self._texts is not None and self._texts.is_alone
        accept = _choose(kind, is_numbers=is_numbers)

        def answer(body: dict[str, Any]) -> Response:
            if self._texts is not None and self._texts.takes(body):
                content.choose(accept, WRITTEN_NUMBER_TYPES)  # raises where texts are wanted
            return self.answer(body, context.for_record())

        batch = self._batch_transform.answer(records, answer, context)
        headers = answer_headers(is_cut=batch.is_cut)
        body = render(batch.lines, accept, has_header=has_header)
        return Response(body, content_type=accept, headers=headers)

    def _is_chat(self, body: dict[str, Any]) -> bool:
        if self._messages_api is True:
            if "messages" not in body:
                raise InvalidParameter(
                    "`messages` is missing (MESSAGES_API_ENABLED=true takes messages only)",
                    field="messages",
                )
            return True
        if "inputs" in body:
            return False
        if self._messages_api is False:
            raise InvalidParameter(
                "`inputs` is missing (MESSAGES_API_ENABLED=false takes generate bodies only)",
                field="inputs",
            )
        if "messages" in body:
            return True
        if "prompt" in body:  # the third shape that TGI looks for
            return False
        raise MalformedRequest("the body has none of `inputs`, `messages` and `prompt`")


def blueprint(
    invocations: Invocations, handler: HandlerDialect | None, batch: BatchParameters
) -> Blueprint:
    """Return the routes."""
    routes = Blueprint("sagemaker", __name__)

    @routes.post("/invocations")
    def invoke() -> Response:
        return handler.invoke() if handler is not None else invocations.invoke(request_context())

    @routes.get("/execution-parameters")
    def execution_parameters() -> Response:
        parameters = {
            "MaxConcurrentTransforms": batch.max_transforms,
            "BatchStrategy": batch.strategy,
            "MaxPayloadInMB": batch.max_payload_mb,
        }
        return json_response(parameters)

    return routes


def watch_headers(app: Flask) -> None:
    """Note the Inference-Id for the log; give CustomAttributes back if user code set none."""

    @app.before_request
    def name_the_log() -> None:
        # A kept connection's greenlet serves many requests, so it is also taken off again.
        logs.inference_id.set(request.headers.get(INFERENCE_ID))

    @app.after_request
    def return_attributes(response: Response) -> Response:
        attributes = request.headers.get(CUSTOM_ATTRIBUTES)
        if attributes is not None and CUSTOM_ATTRIBUTES not in response.headers:
            response.headers[CUSTOM_ATTRIBUTES] = attributes
        return response


def _choose(default: str, *, is_numbers: bool) -> str:
    """Choose the answer's type by the current request. Raises NotAcceptable."""
    offered = WRITTEN_NUMBER_TYPES if is_numbers else WRITTEN_TYPES
    default = default if default in offered else content.JSON
    return content.choose(request.headers.get("Accept", ""), offered, default)


def _text_body() -> dict[str, Any]:
    return {"inputs": body_lines.text(read_bytes(request))}


def _texts(raw: bytes, *, has_header: bool) -> list[str]:
    texts = []
    columns = None if has_header else ["inputs"]
    for row in body_lines.csv_rows(raw, columns, pieces=in_pieces):
        if "inputs" not in row:
            raise MalformedRequest("the CSV needs a first line with the name of its column: inputs")
        texts.append(row["inputs"])
        _check_number(texts)
    return texts


def _check_number(records: Sequence[Record]) -> None:
    if len(records) > MAX_RECORDS:
        raise MalformedRequest(
            f"the body has more than {MAX_RECORDS} records; divide them between several bodies"
        )
