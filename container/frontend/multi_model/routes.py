"""SageMaker's multi-model API: load, list, get, unload and invoke models on one port.

Paths, fields and statuses are those of SageMaker's documentation, "Build Your Own Container for
SageMaker AI Multi-Model Endpoints".
"""

from typing import Any

from flask import Blueprint, Response, request

from container.errors import InvalidParameter, Unavailable
from container.frontend.multi_model.model_server import ModelServer
from container.frontend.multi_model.process_per_model import Models
from container.frontend.multi_model.proxied_response import ProxiedResponse
from container.frontend.web import error_responses
from container.frontend.web.request_body import Body, parse, read_bytes, read_object
from container.frontend.web.responses import json_response

PAGE = 100
# Headers that are of one connection, not of the answer.
HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "keep-alive", "server", "date"})


class LoadRequest(Body):
    """POST /models."""

    model_name: str
    url: str


def blueprint(models: Models) -> Blueprint:
    """Return the routes."""
    routes = Blueprint("models", __name__)

    @routes.route("/ping", methods=["GET", "POST"])
    @routes.get("/health")
    def ping() -> Response:
        return _health(models)

    @routes.post("/models")
    def load() -> Response:
        load_request = parse(LoadRequest, read_object(request))
        models.load(load_request.model_name, load_request.url)
        return json_response(_shown(models.find(load_request.model_name)))

    @routes.get("/models")
    def listed() -> Response:
        first = _page_start(request.args.get("next_page_token"))
        known = models.listed()
        body: dict[str, Any] = {
            "models": [_shown(model_server) for model_server in known[first : first + PAGE]]
        }
        if len(known) > first + PAGE:
            body["nextPageToken"] = str(first + PAGE)
        return json_response(body)

    @routes.get("/models/<name>")
    def get(name: str) -> Response:
        return json_response(_shown(models.find(name)))

    @routes.delete("/models/<name>")
    def unload(name: str) -> Response:
        models.unload(name)
        return Response(status=200)

    @routes.post("/models/<name>/invoke")
    def invoke(name: str) -> Response:
        server = models.find(name)
        passed = ProxiedResponse(
            server, "POST", "/invocations", read_bytes(request),
            {key: value for key, value in request.headers if key.lower() not in HOP_BY_HOP},
            request.environ.get("gunicorn.socket"),
        )  # fmt: skip
        response = Response(passed.chunks(), passed.status)
        response.headers.clear()
        for key, value in passed.headers:
            if key.lower() not in HOP_BY_HOP:
                response.headers[key] = value
        response.call_on_close(passed.close)
        return response

    return routes


def _health(models: Models) -> Response:
    try:
        models.check_ready()
    except Unavailable as error:
        return error_responses.unhealthy(error)
    return Response(status=200)


def _shown(server: ModelServer) -> dict[str, str]:
    return {"modelName": server.name, "modelUrl": server.url}


def _page_start(token: str | None) -> int:
    if token is None:
        return 0
    if not token.isdecimal() or len(token) > 9:
        raise InvalidParameter(
            "`next_page_token` must be the `nextPageToken` of an earlier answer",
            field="next_page_token",
        )
    return int(token)
