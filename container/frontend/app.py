"""Builds the Flask application from its collaborators."""

from dataclasses import dataclass, field
from typing import NoReturn

from flask import Blueprint, Flask
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
from container.frontend.apis.openai.batch import chat_batch
from container.frontend.apis.openai.batch.chat_batch import ChatBatchDialect
from container.frontend.apis.openai.chat import OpenAIDialect
from container.frontend.apis.openai.completions import CompletionsDialect
from container.frontend.apis.openai.responses import routes as responses
from container.frontend.apis.openai.responses.routes import ResponsesDialect
from container.frontend.apis.openai.responses.store import ResponseStore
from container.frontend.apis.sagemaker import adapters, invocations
from container.frontend.apis.sagemaker.batch_slots import BatchSlots
from container.frontend.apis.sagemaker.batch_transform import BatchTransform
from container.frontend.apis.sagemaker.invocations import Invocations, TextInvocations
from container.frontend.apis.sagemaker.sessions import watch as watch_sessions
from container.frontend.apis.sagemaker.user_code import HandlerDialect
from container.frontend.apis.tei import routes as tei
from container.frontend.apis.tei.routes import TeiDialect
from container.frontend.apis.tgi import chat_tokenize, generate
from container.frontend.apis.tgi.generate import TgiDialect
from container.frontend.chat.chat_prompts import ChatPrompts
from container.frontend.chat.conversations import Conversations
from container.frontend.clients.embedder_client import EmbedderConnection
from container.frontend.clients.engine_client import EngineConnection, NoEngine
from container.frontend.clients.handler_client import HandlerClient
from container.frontend.embedding.service import Embeddings
from container.frontend.generation.service import Service
from container.frontend.generation.sessions import Sessions
from container.frontend.multi_model import routes as models_routes
from container.frontend.multi_model.process_per_model import Models
from container.frontend.observability import tracing
from container.frontend.observability.embedded_metrics import EmbeddedMetrics
from container.frontend.observability.embedder_metrics import EmbedderCollector
from container.frontend.observability.metrics import Metrics
from container.frontend.options import Options
from container.frontend.web import replay_info, request_id, tgi_headers, trace_hooks
from container.frontend.web.auth import add_guards
from container.frontend.web.early_refusal import EarlyRefusals
from container.frontend.web.http_request import HttpRequest, set_deadlines
from container.frontend.web.retry_after import RetryAfter, add_retry_after
from container.frontend.web.ui import pages as ui
from container.messages.engine import EngineInfo


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
    embedded_metrics: EmbeddedMetrics | None = None
    responses: ResponseStore = field(default_factory=lambda: ResponseStore(None, 0))


class Dialects:
    """Creates the collaborators of the routes: metrics, texts, chats, a dialect for each API."""

    def __init__(self, context: AppContext) -> None:
        service, options = context.service, context.options
        limits = options.limits
        self.metrics = Metrics(service, context.embedded_metrics)
        self.texts = Embeddings(
            context.embedder,
            max_inputs=limits.max_embedding_inputs,
            auto_truncate=options.auto_truncate,
        )
        if self.texts.is_offered:
            self.metrics.add(EmbedderCollector(self.texts))
        prompts = ChatPrompts(service.prompts, options.tool_call_parser, options.system_prompt)
        self.conversations = Conversations(service, prompts)
        generation = (service, self.metrics, limits)
        self.tgi = TgiDialect(*generation)
        self.completions = CompletionsDialect(*generation)
        self.openai = OpenAIDialect(*generation, self.conversations)
        self.chat_batch = ChatBatchDialect(*generation, self.conversations, self.openai)
        self.anthropic = AnthropicDialect(*generation, self.conversations)
        self.responses = ResponsesDialect(*generation, self.conversations, context.responses)
        self.tei = TeiDialect(self.texts, self.metrics)
        self.embeddings = EmbeddingsDialect(self.texts, self.metrics)
        self.pooling = PoolingDialect(self.texts, self.metrics)


def create_app(context: AppContext) -> Flask:
    """Wire the routes of all dialects to one service, and `/invocations` to user code if any."""
    options, dialects = context.options, Dialects(context)
    invocation = _invocations(context, dialects)
    app = Flask("container", static_folder=None)
    app.request_class = HttpRequest
    app.config["MAX_CONTENT_LENGTH"] = options.payload_limit
    set_deadlines(app, options.deadlines)
    if context.tracer is not None:
        trace_hooks.watch(app, context.tracer)
    for routes in (
        *_server_routes(context, dialects),
        *_text_routes(context, dialects),
        *_generation_routes(context, dialects),
        _invocation_routes(context, dialects, invocation),
    ):
        app.register_blueprint(routes)
    tgi_headers.add_headers(app, options.compute_type)
    replay_info.add_headers(app)
    invocations.watch_headers(app)
    request_id.add_header(app)
    add_guards(app, dialects.metrics, options.api_key)
    retry_after = RetryAfter(context.service, dialects.metrics)
    add_retry_after(app, retry_after)
    if context.sessions is not None:
        watch_sessions(app, context.sessions)
    _allow_origins(app, options.cors_origins)
    if context.tracer is None:  # else a refusal has a span, too
        app.wsgi_app = EarlyRefusals(  # type: ignore[method-assign]
            app.wsgi_app,
            context.service,
            dialects.metrics,
            retry_after,
            options.payload_limit,
            options.api_key,
            invocation.dialect_of_refused if _generates_only(context, dialects) else None,
        )
    return app


def _generates_only(context: AppContext, dialects: Dialects) -> bool:
    """Whether all JSON bodies of `/invocations` need a place in the engine."""
    has_sessions = context.sessions is not None and context.sessions.is_on
    return context.handler is None and not dialects.texts.is_offered and not has_sessions


def _server_routes(context: AppContext, dialects: Dialects) -> list[Blueprint]:
    checks = health.Readiness(
        context.service, context.handler, dialects.texts, dialects.conversations
    )
    options = context.options
    server_routes = health.blueprint(
        checks,
        dialects.metrics,
        options.limits,
        num_frontends=options.num_frontends,
        browser_page=ui.index_for_browser if options.has_ui else lambda: None,
    )
    return [
        server_routes,
        *([ui.blueprint()] if options.has_ui else []),
        models.blueprint(context.service, dialects.texts),
        adapters.blueprint(context.engine),
        pages.description(),
        pages.swagger(),
    ]


def _text_routes(context: AppContext, dialects: Dialects) -> list[Blueprint]:
    owns_root = dialects.texts.is_offered and not context.service.has_engine
    return [
        tei.blueprint(dialects.tei, dialects.embeddings.rerank, owns_root=owns_root),
        embeddings.blueprint(dialects.embeddings),
        pooling.blueprint(dialects.pooling),
    ]


def _generation_routes(context: AppContext, dialects: Dialects) -> list[Blueprint]:
    service, system_prompt = context.service, context.options.system_prompt
    return [
        generate.blueprint(dialects.tgi),
        chat_tokenize.blueprint(service, dialects.openai),
        chat.blueprint(dialects.openai),
        chat_batch.blueprint(dialects.chat_batch),
        completions.blueprint(dialects.completions),
        responses.blueprint(dialects.responses),
        anthropic.blueprint(dialects.anthropic),
        llm_serving.blueprint(service, dialects.openai, system_prompt=system_prompt),
    ]


def _invocations(context: AppContext, dialects: Dialects) -> Invocations:
    options, has_engine = context.options, context.service.has_engine
    texts = TextInvocations(dialects.embeddings, dialects.tei, has_engine=has_engine)
    return Invocations(
        dialects.tgi,
        dialects.openai,
        dialects.completions,
        dialects.anthropic,
        BatchTransform(BatchSlots(options.num_batch_slots)),
        texts if dialects.texts.is_offered else None,
        messages_api=options.messages_api,
        default_accept=options.default_accept,
        is_batch=options.is_batch,
    )


def _invocation_routes(
    context: AppContext, dialects: Dialects, invocation: Invocations
) -> Blueprint:
    handler = context.handler
    user_code = HandlerDialect(handler, dialects.metrics) if handler is not None else None
    return invocations.blueprint(invocation, user_code, context.options.batch)


def _allow_origins(app: Flask, origins: list[str]) -> None:
    CORS(
        app,
        origins=origins,
        methods=["GET", "POST", "DELETE"],
        allow_headers=["content-type", "authorization", "x-api-key", "anthropic-version"],
        expose_headers=[request_id.HEADER],
        send_wildcard=True,
    )


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
    raise AssertionError("a multi-model frontend has no tokenizer")
