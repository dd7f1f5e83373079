"""The composition root of a gunicorn worker: reads settings, connects backends, makes the app."""

import atexit
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

# transformers offers its tokenizers without torch, and would import torch if it could: 180 MB
# and a second in each worker for nothing.
sys.modules["torch"] = None  # type: ignore[assignment]
os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # it would advise to install torch

from container import logs, transformers_index

transformers_index.install()

import gevent
from flask import Flask
from gevent.threadpool import ThreadPool

from container.errors import ServingError
from container.frontend.apis.openai.responses.store import ResponseStore
from container.frontend.app import AppContext, create_app, create_models_app
from container.frontend.clients.embedder_client import EmbedderClient
from container.frontend.clients.engine_client import EngineClient, NoEngine
from container.frontend.clients.engine_router import EngineGroup
from container.frontend.clients.handler_client import HandlerClient
from container.frontend.clients.image_fetcher import ImageFetcher
from container.frontend.generation.images import Images
from container.frontend.generation.offloading import Offload, Offloads
from container.frontend.generation.served_model import tokenizer_loader
from container.frontend.generation.service import Service
from container.frontend.generation.sessions import Sessions
from container.frontend.multi_model.process_per_model import Models
from container.frontend.observability.embedded_metrics import EmbeddedMetrics
from container.frontend.observability.tracing import OtlpTracer
from container.frontend.options import Options
from container.images.decoding import ImageLimits
from container.machine import free_memory_bytes
from container.settings.process_env import (
    EMBEDDER_ADDRESS,
    ENGINE_ADDRESS,
    HANDLER_ADDRESS,
    RESPONSES_FOLDER,
    SESSIONS_FOLDER,
)
from container.settings.requests import RequestSettings
from container.settings.server import ObservabilitySettings, SageMakerSettings
from container.settings.settings import Settings
from container.text.templates.renderer import TemplateRenderer

T = TypeVar("T")
# Native threads for each kind of slow work. Few, since they compete with the engine for a CPU.
TEXT_THREADS, GRAMMAR_THREADS, IMAGE_THREADS, FILE_THREADS = 2, 2, 2, 2
# Of an integer in a body: the time to read one grows with the square of them. Python takes no less.
MAX_DIGITS = 640
# How long to wait for the status of the backends; one in a long step sends it after the step.
KNOWN_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Backends:
    """Clients of the processes behind this one; None for one that does not exist."""

    engine: EngineClient | EngineGroup | None
    handler: HandlerClient | None
    embedder: EmbedderClient | None

    @classmethod
    def connect(cls, environ: Mapping[str, str]) -> "Backends":
        """Start the clients of all backends that the supervisor names."""
        addresses = environ[ENGINE_ADDRESS].split(",") if ENGINE_ADDRESS in environ else []
        group = EngineGroup(addresses) if len(addresses) > 1 else None
        backends = cls(
            EngineClient(addresses[0]) if len(addresses) == 1 else group,
            HandlerClient(environ[HANDLER_ADDRESS]) if HANDLER_ADDRESS in environ else None,
            EmbedderClient(environ[EMBEDDER_ADDRESS]) if EMBEDDER_ADDRESS in environ else None,
        )
        for client in backends._clients:
            client.start()
        return backends

    def wait_known(self, timeout_s: float) -> None:
        """Wait until each has sent its status, or nothing listens at its address."""
        until = time.monotonic() + timeout_s
        for client in self._clients:
            client.wait_known(max(0.0, until - time.monotonic()))

    @property
    def _clients(self) -> list[EngineClient | EngineGroup | HandlerClient | EmbedderClient]:
        clients = (self.engine, self.handler, self.embedder)
        return [client for client in clients if client is not None]


def application() -> Flask:
    """Make the app of this worker; gunicorn calls it once after the fork."""
    settings = Settings.from_environ(os.environ)
    logs.configure(settings.observability.log_level, json_output=settings.observability.json_output)
    sys.set_int_max_str_digits(MAX_DIGITS)
    backends = Backends.connect(os.environ)
    engine = backends.engine or NoEngine()
    load = tokenizer_loader(
        trust_remote_code=settings.model.trust_remote_code,
        template_path=settings.model.tokenizer_config_path,
        renderer=_started_renderer() if backends.engine is not None else None,
    )
    offloads = Offloads(
        texts=_in_threads(TEXT_THREADS),
        grammars=_in_threads(GRAMMAR_THREADS),
        images=_in_threads(IMAGE_THREADS),
        files=_in_threads(FILE_THREADS),
    )
    service = Service(
        engine,
        load,
        offloads,
        _images(settings.requests, offloads),
        strict_model_names=settings.server.strict_model_names,
    )
    _wait_ready(backends, service)
    tracer = None
    if settings.observability.otlp_endpoint is not None:
        tracer = OtlpTracer(
            settings.observability.otlp_endpoint, settings.observability.otlp_service_name
        )
    return create_app(
        AppContext(
            service,
            Options.from_settings(settings),
            engine,
            sessions=_sessions(settings.sagemaker),
            responses=ResponseStore(
                Path(os.environ[RESPONSES_FOLDER]), settings.requests.max_stored_responses
            ),
            tracer=tracer,
            embedded_metrics=_embedded_metrics(settings.observability),
            handler=backends.handler,
            embedder=backends.embedder,
        )
    )


def multi_model_application() -> Flask:
    """Make the app of a multi-model endpoint, which holds no model itself."""
    settings = Settings.from_environ(os.environ)
    logs.configure(settings.observability.log_level, json_output=settings.observability.json_output)
    models = Models(
        os.environ,
        free_memory=free_memory_bytes,
        load_timeout_s=settings.sagemaker.load_timeout_s,
        drain_s=settings.server.drain_s,
        offload=_in_threads(FILE_THREADS),
    )
    atexit.register(models.close)
    _drain_before_exit(models, settings.server.drain_s)
    return create_models_app(models, Options.from_settings(settings))


def _embedded_metrics(settings: ObservabilitySettings) -> EmbeddedMetrics | None:
    if settings.emf_namespace is None:
        return None
    return EmbeddedMetrics(settings.emf_namespace, settings.emf_dimensions or {})


def _started_renderer() -> TemplateRenderer:
    """Start the process for chat templates while the engine loads, not after it."""
    renderer = TemplateRenderer()
    renderer.start()
    return renderer


def _wait_ready(backends: Backends, service: Service) -> None:
    """Wait until this worker could serve, if its backends can.

    gunicorn accepts connections after it: a worker that replaces another must not answer /ping
    with 503 while the backends are ready. While they start, it answers at once.
    """
    backends.wait_known(KNOWN_WITHIN_S)
    with contextlib.suppress(ServingError):
        service.check_ready()  # loads the tokenizer


def _drain_before_exit(models: Models, drain_s: float) -> None:
    """Drain the models at SIGTERM; gunicorn's own handler then ends this worker."""
    leave = signal.getsignal(signal.SIGTERM)
    assert callable(leave), "gunicorn installs its handler before it loads the app"

    def drain(number: int, frame: FrameType | None) -> None:
        models.drain(time.monotonic() + drain_s)
        leave(number, frame)

    # A handler must not wait, so a greenlet does.
    signal.signal(signal.SIGTERM, lambda number, frame: gevent.spawn(drain, number, frame))


def _sessions(settings: SageMakerSettings) -> Sessions:
    folder = settings.sessions_path or os.environ[SESSIONS_FOLDER]
    return Sessions(Path(folder) if settings.has_sessions else None, settings.sessions_lifetime_s)


def _images(settings: RequestSettings, offloads: Offloads) -> Images:
    limits = ImageLimits(
        settings.max_images, settings.max_image_fetch_size, settings.max_image_pixels
    )
    fetch = ImageFetcher(settings.allowed_image_domains, settings.max_image_fetch_size)
    return Images(limits, fetch, offloads.images)


def _in_threads(count: int) -> Offload:
    """Make an Offload with `count` native threads; other greenlets run meanwhile."""
    pool = ThreadPool(count)

    def run(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        result: T | None
        result, error = pool.apply(_outcome, (function, args, kwargs))
        if error is not None:
            raise error
        return cast(T, result)

    return run


def _outcome(
    function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[T | None, Exception | None]:
    """Call a function and return its exception, whose traceback gevent would print."""
    try:
        return function(*args, **kwargs), None
    except Exception as error:
        return None, error
