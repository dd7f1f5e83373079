"""The Flask application, made from its collaborators."""

from dataclasses import dataclass, field
from typing import NoReturn

from flask import Flask
from flask_cors import CORS

from container.frontend.apis import health, llm_serving
from container.frontend.apis.anthropic import messages as anthropic
from container.frontend.apis.anthropic.messages import AnthropicDialect
from container.frontend.apis.docs import pages
from container.frontend.apis.embeddings import openai as embeddings
from container.frontend.apis.embeddings import pooling
from container.frontend.apis.embeddings.openai import EmbeddingsDialect
from container.frontend.apis.embeddings.pooling import PoolingDialect
from container.frontend.apis.openai import chat, completions, models
from container.frontend.apis.openai.chat import OpenAIDialect
from container.frontend.apis.openai.completions import CompletionsDialect
from container.frontend.apis.openai.responses import routes as responses
from container.frontend.apis.openai.responses.routes import ResponsesDialect
from container.frontend.apis.openai.responses.store import ResponseStore
from container.frontend.apis.sagemaker import adapters, invocations
from container.frontend.apis.sagemaker.batch_share import BatchShare
from container.frontend.apis.sagemaker.batch_transform import BatchTransform
from container.frontend.apis.sagemaker.invocations import (
    BatchParameters,
    Invocations,
    TextInvocations,
)
from container.frontend.apis.sagemaker.sessions import watch as watch_sessions
from container.frontend.apis.sagemaker.user_code import HandlerDialect
from container.frontend.apis.tei import routes as tei
from container.frontend.apis.tei.routes import TeiDialect
from container.frontend.apis.tgi import chat_tokenize, generate
from container.frontend.apis.tgi.generate import TgiDialect
from container.frontend.clients.embedder_client import EmbedderConnection
from container.frontend.clients.engine_client import EngineConnection, NoEngine
from container.frontend.clients.handler_client import HandlerClient
from container.frontend.generation.chat import Conversations
from container.frontend.generation.chat_prompts import ChatPrompts
from container.frontend.generation.embedding_service import Embeddings
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.request_context import Deadlines
from container.frontend.generation.service import Service
from container.frontend.generation.sessions import Sessions
from container.frontend.multi_model import routes as models_routes
from container.frontend.multi_model.process_per_model import Models
from container.frontend.observability import tracing
from container.frontend.observability.embedder_metrics import EmbedderCollector
from container.frontend.observability.metrics import Metrics
from container.frontend.web import request_id, tgi_headers, trace_hooks
from container.frontend.web.auth import add_guards
from container.frontend.web.http_request import HttpRequest, set_deadlines
from container.frontend.web.retry_after import add_retry_after
from container.frontend.web.ui import pages as ui
from container.messages.engine import EngineInfo
from container.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class Options:
    """What of the settings the HTTP side needs."""

    payload_limit: int
    default_accept: str
    is_batch: bool
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
    deadlines: Deadlines
    batch_share: int
    has_ui: bool

    @classmethod
    def from_settings(cls, settings: Settings) -> "Options":
        """Pick them."""
        return cls(
            payload_limit=settings.server.body_limit,
            default_accept=settings.handlers.default_accept,
            is_batch=settings.server.is_batch,
            batch=BatchParameters.from_settings(settings),
            limits=RequestLimits.from_settings(settings),
            messages_api=settings.server.messages_api_enabled,
            api_key=settings.server.api_key,
            cors_origins=[
                origin.strip() for origin in settings.server.cors_allow_origin.split(",")
            ],
            compute_type=settings.server.compute_type,
            auto_truncate=settings.embedding.auto_truncate,
            num_frontends=settings.server.num_frontends,
            tool_call_parser=settings.requests.tool_call_parser,
            system_prompt=settings.requests.system_prompt,
            batch_share=_batch_share(settings),
            has_ui=settings.server.has_ui,
            deadlines=Deadlines(settings.server.deadline_s, settings.server.stream_deadline_s),
        )


@dataclass(frozen=True, slots=True)
class AppContext:
    """The collaborators of the app: its options and its connections to other processes.

    `responses` are those that `/v1/responses` stores.
    `handler` is the user's code, `embedder` the embedding or rerank model; None if there is none.
    """

    service: Service
    options: Options
    engine: EngineConnection = field(default_factory=NoEngine)
    sessions: Sessions | None = None
    tracer: tracing.Tracer | None = None
    handler: HandlerClient | None = None
    embedder: EmbedderConnection | None = None
    responses: ResponseStore = field(default_factory=lambda: ResponseStore(None, 0))


def create_app(context: AppContext) -> Flask:
    """Wire the routes of all dialects to one service, and `/invocations` to user code if any."""
    service, options, handler = context.service, context.options, context.handler
    app = Flask("container", static_folder=None)
    app.request_class = HttpRequest
    app.config["MAX_CONTENT_LENGTH"] = options.payload_limit
    set_deadlines(app, options.deadlines)
    if context.tracer is not None:
        trace_hooks.watch(app, context.tracer)
    metrics = Metrics(service)
    tgi_dialect = TgiDialect(service, metrics, options.limits)
    prompts = ChatPrompts(service, options.tool_call_parser, options.system_prompt)
    conversations = Conversations(service, prompts)
    openai_dialect = OpenAIDialect(service, metrics, options.limits, conversations)
    texts = Embeddings(
        context.embedder,
        max_inputs=options.limits.max_embedding_inputs,
        auto_truncate=options.auto_truncate,
    )
    if texts.is_offered:
        metrics.add(EmbedderCollector(texts))
    tei_dialect = TeiDialect(texts, metrics)
    embeddings_dialect = EmbeddingsDialect(texts, metrics)
    app.register_blueprint(
        health.blueprint(
            service,
            metrics,
            options.limits,
            handler,
            texts,
            conversations,
            num_frontends=options.num_frontends,
            browser_page=ui.index_for_browser if options.has_ui else lambda: None,
        )
    )
    if options.has_ui:
        app.register_blueprint(ui.blueprint())
    app.register_blueprint(
        tei.blueprint(tei_dialect, owns_root=texts.is_offered and not service.has_engine)
    )
    app.register_blueprint(
        llm_serving.blueprint(service, openai_dialect, system_prompt=options.system_prompt)
    )
    app.register_blueprint(embeddings.blueprint(embeddings_dialect))
    app.register_blueprint(pooling.blueprint(PoolingDialect(texts, metrics)))
    app.register_blueprint(generate.blueprint(tgi_dialect))
    app.register_blueprint(chat.blueprint(openai_dialect))
    app.register_blueprint(models.blueprint(service, texts))
    completions_dialect = CompletionsDialect(service, metrics, options.limits)
    app.register_blueprint(completions.blueprint(completions_dialect))
    responses_dialect = ResponsesDialect(
        service, metrics, options.limits, conversations, context.responses
    )
    app.register_blueprint(responses.blueprint(responses_dialect))
    anthropic_dialect = AnthropicDialect(service, metrics, options.limits, conversations)
    app.register_blueprint(anthropic.blueprint(anthropic_dialect))
    app.register_blueprint(chat_tokenize.blueprint(service, openai_dialect))
    app.register_blueprint(
        invocations.blueprint(
            Invocations(
                tgi_dialect,
                openai_dialect,
                completions_dialect,
                anthropic_dialect,
                BatchTransform(BatchShare(options.batch_share)),
                TextInvocations(embeddings_dialect, tei_dialect, has_engine=service.has_engine)
                if texts.is_offered
                else None,
                messages_api=options.messages_api,
                default_accept=options.default_accept,
                is_batch=options.is_batch,
            ),
            HandlerDialect(handler, metrics) if handler is not None else None,
            options.batch,
        )
    )
    app.register_blueprint(adapters.blueprint(context.engine))
    app.register_blueprint(pages.description())
    app.register_blueprint(pages.swagger())
    tgi_headers.add_headers(app, options.compute_type)
    invocations.watch_headers(app)
    request_id.add_header(app)
    add_guards(app, metrics, options.api_key)
    add_retry_after(app, service, metrics)
    if context.sessions is not None:
        watch_sessions(app, context.sessions)
    CORS(
        app,
        origins=options.cors_origins,
        methods=["GET", "POST", "DELETE"],
        allow_headers=["content-type", "authorization", "x-api-key", "anthropic-version"],
        expose_headers=[request_id.HEADER],
        send_wildcard=True,
    )
    return app


def create_models_app(loaded_models: Models, options: Options) -> Flask:
    """Wire the routes of a multi-model endpoint."""
    app = Flask("container", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = options.payload_limit
    app.register_blueprint(models_routes.blueprint(loaded_models))
    invocations.watch_headers(app)
    request_id.add_header(app)
    add_guards(app, Metrics(Service(NoEngine(), _no_tokenizer)), options.api_key)
    return app


def _no_tokenizer(_: EngineInfo) -> NoReturn:
    raise AssertionError("nobody asks for the tokenizer of no model")


def _batch_share(settings: Settings) -> int:
    """Return how many records this process, one of several, may have running."""
    of_all = settings.max_batch_requests * settings.placement.data_parallel
    return max(1, of_all // settings.server.num_frontends)
