"""The Flask application, made from its collaborators."""

import hmac
from dataclasses import dataclass
from typing import NoReturn

from flask import Flask, Response, request
from flask_cors import CORS
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from container.errors import Unauthorized
from container.frontend import problems, timing, tracing
from container.frontend.answers import CLIENT_GONE_STATUS, ClientGone
from container.frontend.conversation import Conversations
from container.frontend.embedder_client import EmbedderConnection
from container.frontend.embedder_metrics import EmbedderCollector
from container.frontend.embedding import Embeddings
from container.frontend.engine_client import EngineConnection, NoEngine
from container.frontend.handler_client import HandlerClient
from container.frontend.limits import RequestLimits
from container.frontend.metrics import Metrics
from container.frontend.models import Models
from container.frontend.records import Records
from container.frontend.routes import (
    adapters,
    completions,
    embeddings,
    health,
    llm_serving,
    openai,
    pages,
    responses,
    sagemaker,
    tei,
    tgi,
    tokens,
)
from container.frontend.routes import models as models_routes
from container.frontend.routes.completions import CompletionsDialect
from container.frontend.routes.embeddings import EmbeddingsDialect
from container.frontend.routes.handler import HandlerDialect
from container.frontend.routes.openai import OpenAIDialect
from container.frontend.routes.responses import ResponsesDialect
from container.frontend.routes.sagemaker import BatchParameters, Invocations, TextInvocations
from container.frontend.routes.tei import TeiDialect
from container.frontend.routes.tgi import TgiDialect
from container.frontend.service import Service
from container.frontend.sessions import Sessions
from container.frontend.sessions import watch as watch_sessions
from container.messages import EngineInfo
from container.settings import Settings

OPEN_PATHS = frozenset(
    {
        "/ping",
        "/execution-parameters",
        "/health",
        "/info",
        "/metrics",
        "/openapi.json",
        "/api-doc/openapi.json",
    }
)


@dataclass(frozen=True, slots=True)
class Options:
    """What of the settings the HTTP side needs."""

    payload_limit: int
    default_accept: str
    batch: BatchParameters
    limits: RequestLimits
    messages_api: bool | None
    api_key: str | None
    cors_origins: list[str]
    compute_type: str | None
    auto_truncate: bool
    num_frontends: int
    tool_call_parser: str | None
    system_prompt: str | None

    @classmethod
    def from_settings(cls, settings: Settings) -> "Options":
        """Pick them."""
        return cls(
            payload_limit=settings.body_limit,
            default_accept=settings.default_accept,
            batch=BatchParameters.from_settings(settings),
            limits=RequestLimits.from_settings(settings),
            messages_api=settings.messages_api_enabled,
            api_key=settings.api_key,
            cors_origins=[origin.strip() for origin in settings.cors_allow_origin.split(",")],
            compute_type=settings.compute_type,
            auto_truncate=settings.auto_truncate,
            num_frontends=settings.num_frontends,
            tool_call_parser=settings.tool_call_parser,
            system_prompt=settings.system_prompt,
        )


def create_app(
    service: Service,
    options: Options,
    tracer: tracing.Tracer | None = None,
    handler: HandlerClient | None = None,
    embedder: EmbedderConnection | None = None,
    *,
    engine: EngineConnection | None = None,
    sessions: Sessions | None = None,
) -> Flask:
    """Wire the routes of all dialects to one service, and `/invocations` to user code if any."""
    app = Flask("container", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = options.payload_limit
    if tracer is not None:
        tracing.watch(app, tracer)
    metrics = Metrics(service)
    tgi_dialect = TgiDialect(service, metrics, options.limits)
    conversations = Conversations(service, options.tool_call_parser, options.system_prompt)
    openai_dialect = OpenAIDialect(service, metrics, options.limits, conversations)
    texts = Embeddings(
        embedder,
        max_inputs=options.limits.max_embedding_inputs,
        auto_truncate=options.auto_truncate,
    )
    if texts.is_offered:
        metrics.add(EmbedderCollector(texts))
    tei_dialect = TeiDialect(texts, metrics)
    embeddings_dialect = EmbeddingsDialect(texts, metrics)
    app.register_blueprint(
        health.blueprint(
            service, metrics, options.limits, handler, texts, num_frontends=options.num_frontends
        )
    )
    app.register_blueprint(
        tei.blueprint(tei_dialect, owns_root=texts.is_offered and not service.has_engine)
    )
    app.register_blueprint(
        llm_serving.blueprint(service, openai_dialect, system_prompt=options.system_prompt)
    )
    app.register_blueprint(embeddings.blueprint(embeddings_dialect))
    app.register_blueprint(tgi.blueprint(tgi_dialect))
    app.register_blueprint(openai.blueprint(openai_dialect, texts))
    completions_dialect = CompletionsDialect(service, metrics, options.limits)
    app.register_blueprint(completions.blueprint(completions_dialect))
    responses_dialect = ResponsesDialect(service, metrics, options.limits, conversations)
    app.register_blueprint(responses.blueprint(responses_dialect))
    app.register_blueprint(tokens.blueprint(service, openai_dialect))
    app.register_blueprint(
        sagemaker.blueprint(
            Invocations(
                tgi_dialect,
                openai_dialect,
                completions_dialect,
                Records(metrics, options.limits.max_concurrent_requests),
                TextInvocations(embeddings_dialect, tei_dialect, has_engine=service.has_engine)
                if texts.is_offered
                else None,
                messages_api=options.messages_api,
                default_accept=options.default_accept,
            ),
            HandlerDialect(handler, metrics) if handler is not None else None,
            options.batch,
        )
    )
    app.register_blueprint(adapters.blueprint(engine if engine is not None else NoEngine()))
    app.register_blueprint(pages.description())
    app.register_blueprint(pages.swagger())
    timing.add_headers(app, service, options.compute_type)
    sagemaker.watch_headers(app)
    _add_guards(app, metrics, options.api_key)
    if sessions is not None:
        watch_sessions(app, sessions)
    CORS(
        app,
        origins=options.cors_origins,
        methods=["GET", "POST", "DELETE"],
        allow_headers=["content-type", "authorization"],
        send_wildcard=True,
    )
    return app


def create_models_app(models: Models, options: Options) -> Flask:
    """Wire the routes of a multi-model endpoint."""
    app = Flask("container", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = options.payload_limit
    app.register_blueprint(models_routes.blueprint(models))
    sagemaker.watch_headers(app)
    _add_guards(app, Metrics(Service(NoEngine(), _no_tokenizer)), options.api_key)
    return app


def _no_tokenizer(_: EngineInfo) -> NoReturn:
    raise AssertionError("nobody asks for the tokenizer of no model")


def _add_guards(app: Flask, metrics: Metrics, api_key: str | None) -> None:
    @app.before_request
    def check_key() -> None:
        is_page = request.path.startswith("/docs") or request.path == "/"
        is_open = request.path in OPEN_PATHS or (is_page and request.method == "GET")
        is_preflight = request.method == "OPTIONS"  # browsers ask without the key
        if api_key is None or is_open or is_preflight:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.encode(), api_key.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise Unauthorized("the header 'Authorization: Bearer <API_KEY>' is missing or wrong")

    @app.before_request
    def count() -> None:
        if request.method == "POST":
            metrics.count_request()

    @app.errorhandler(ClientGone)
    def client_gone(_: ClientGone) -> Response:
        return Response(status=CLIENT_GONE_STATUS)

    @app.errorhandler(Exception)
    def explain(error: Exception) -> Response:
        if isinstance(error, HTTPException) and not isinstance(error, RequestEntityTooLarge):
            return problems.routing_problem(error)
        shown = problems.shown(error)
        if request.method == "POST":
            metrics.count_failure(shown)
        return problems.problem(shown)
