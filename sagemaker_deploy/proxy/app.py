"""The routes of the proxy, its keys, and its own pages: models, health, metrics."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from aiohttp.typedefs import Middleware

from sagemaker_deploy.proxy.endpoint import Endpoint
from sagemaker_deploy.proxy.error_bodies import error_body
from sagemaker_deploy.proxy.handler import BODY_LIMIT, RequestHandler
from sagemaker_deploy.proxy.keys import Keys, is_foreign
from sagemaker_deploy.proxy.metrics import Metrics
from sagemaker_deploy.proxy.plans import Api
from sagemaker_deploy.proxy.request_log import RequestLog
from sagemaker_deploy.proxy.targets import Targets

log = logging.getLogger(__name__)
OWNER = web.RequestKey("owner", str)
ROUTES = {
    "/v1/chat/completions": Api.CHAT,
    "/openai/v1/chat/completions": Api.CHAT,
    "/v1/completions": Api.COMPLETIONS,
    "/openai/v1/completions": Api.COMPLETIONS,
    "/v1/responses": Api.RESPONSES,
    "/v1/messages": Api.MESSAGES,
    "/v1/messages/count_tokens": Api.MESSAGES,
    "/v1/embeddings": Api.EMBEDDINGS,
    "/openai/v1/embeddings": Api.EMBEDDINGS,
    "/": Api.GENERATE,
    "/generate": Api.GENERATE,
    "/generate_stream": Api.GENERATE,
}
OTHER_ROUTES = (
    "/v1/chat/completions/batch", "/v1/rerank", "/v2/rerank", "/v2/embed", "/rerank",
    "/v1/score", "/score", "/classify", "/pooling", "/embed", "/embed_all", "/embed_sparse",
    "/similarity", "/predict", "/tokenize", "/chat_tokenize",
)  # fmt: skip
OPEN = ("/health", "/ping")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(
    targets: Targets,
    endpoints: Mapping[str, Endpoint],
    keys: Keys,
    metrics: Metrics,
    request_log: RequestLog | None = None,
) -> web.Application:
    """Create the application."""
    handler = RequestHandler(targets, endpoints, metrics, request_log)
    app = web.Application(client_max_size=BODY_LIMIT, middlewares=[_guard(keys)])
    for path, api in {**ROUTES, **dict.fromkeys(OTHER_ROUTES, Api.OTHER)}.items():
        app.router.add_post(path, _answer(handler, api))
    models = _models(targets)
    for prefix in ("/v1", "/openai/v1"):
        app.router.add_get(f"{prefix}/models", models)
        app.router.add_get(f"{prefix}/models/{{name:.+}}", models)
    for path in OPEN:
        app.router.add_get(path, _health)
    app.router.add_get("/metrics", _metrics(endpoints, metrics))
    return app


def api_of(path: str) -> Api:
    """Return the API whose form an error on a path has."""
    return ROUTES.get(path, Api.MESSAGES if path.startswith("/v1/messages") else Api.OTHER)


def _guard(keys: Keys) -> Middleware:
    """Refuse requests without a key, or, if there are no keys, those of other sites' pages."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path not in OPEN:
                owner = keys.owner(request.headers) if keys else ""
                if owner is None:
                    return _refusal(request, 401, "the key is missing or not known to this proxy")
                if not keys and is_foreign(request.headers):
                    return _refusal(request, 403, "pages of other sites may not use this proxy")
                request[OWNER] = owner
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return _refusal(
                request, error.status, f"{request.method} {request.path}: {error.reason}"
            )
        except Exception:  # of any kind: the client gets an error of its API, not aiohttp's page
            log.exception("proxy: a request failed: a fault of the proxy; its client gets a 500")
            return _refusal(request, 500, "the proxy failed; its log has the reason")

    return guard


def _refusal(request: web.Request, status: int, message: str) -> web.Response:
    return web.json_response(error_body(api_of(request.path), status, message), status=status)


def _answer(handler: RequestHandler, api: Api) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await handler.answer(request, api, request[OWNER])

    return answer


def _models(targets: Targets) -> Handler:
    created = int(time.time())

    def shown(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": created, "owned_by": "sagemaker"}

    async def models(request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("name")
        if name is None:
            data = [shown(name) for name in targets.models]
            return web.json_response({"object": "list", "data": data})
        if name not in targets.models:
            known = ", ".join(targets.models)
            return _refusal(request, 404, f"model {name!r} is not known here; known are: {known}")
        return web.json_response(shown(name))

    return models


async def _health(_: web.Request) -> web.StreamResponse:
    return web.Response()


def _metrics(endpoints: Mapping[str, Endpoint], metrics: Metrics) -> Handler:
    async def show(_: web.Request) -> web.StreamResponse:
        retries = {name: endpoint.retries.counts for name, endpoint in endpoints.items()}
        waiting = {name: endpoint.retries.num_waiting for name, endpoint in endpoints.items()}
        text = metrics.text(retries, waiting)
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4"})

    return show
