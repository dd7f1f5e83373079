"""LoRA adapters at run time: SageMaker's adapter inference components load and unload them so.

Paths, fields and texts are those of DJL's adapters API and of AWS's
model-hosting-container-standards 0.1.
"""

from typing import Any

from flask import Blueprint, Response, request

from container.errors import InvalidParameter, NotFound
from container.frontend.clients.engine_client import EngineConnection
from container.frontend.web.request_body import Body, parse, read_object
from container.frontend.web.responses import json_response
from container.messages.engine import AdapterInfo

ALIAS = "X-Amzn-SageMaker-Adapter-Alias"


class AdapterRequest(Body):
    """POST /adapters; `src` is a folder or a Hub id."""

    name: str
    src: str
    preload: bool = True
    pin: bool = False


def blueprint(engine: EngineConnection) -> Blueprint:
    """Return the routes."""
    routes = Blueprint("adapters", __name__)

    @routes.post("/adapters")
    def register() -> Response:
        adapter_request = parse(AdapterRequest, _parameters())
        engine.add_adapter(
            adapter_request.name,
            adapter_request.src,
            preload=adapter_request.preload,
            pin=adapter_request.pin,
        )
        return Response(f"Adapter {_alias(adapter_request.name)} registered", mimetype="text/plain")

    @routes.get("/adapters")
    def adapters() -> Response:
        return json_response({"adapters": [_shown(info) for info in _known(engine)]})

    @routes.get("/adapters/<path:name>")
    def adapter(name: str) -> Response:
        known = _known(engine)
        matching = [info for info in known if info.name == name]
        if not matching:
            names = ", ".join(info.name for info in known) or "none"
            raise NotFound(f"adapter {name!r} is not known; known are: {names}")
        return json_response(_shown(matching[0]))

    @routes.delete("/adapters/<path:name>")
    def unregister(name: str) -> Response:
        engine.remove_adapter(name)
        return Response(f"Adapter {_alias(name)} unregistered", mimetype="text/plain")

    return routes


def _parameters() -> dict[str, Any]:
    """Read a JSON body, or query parameters, as DJL takes them."""
    if not request.args:
        return read_object(request)
    query: dict[str, Any] = request.args.to_dict()
    for name in ("preload", "pin"):
        if name in query:
            if query[name].lower() not in ("true", "false"):
                raise InvalidParameter(f"`{name}` must be true or false", field=name)
            query[name] = query[name].lower() == "true"
    return query


def _known(engine: EngineConnection) -> list[AdapterInfo]:
    return engine.status.adapters or []


def _shown(info: AdapterInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "src": info.source,
        "loaded": info.is_loaded,
        "pin": info.is_pinned,
    }


def _alias(name: str) -> str:
    return request.headers.get(ALIAS) or name
