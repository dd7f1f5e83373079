"""/openapi.json: the table of routes and the schemas of their bodies, as OpenAPI 3.1."""

import re
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from container import __version__
from container.frontend.apis.docs.anthropic_schemas import AnthropicError
from container.frontend.apis.docs.openai_schemas import OpenAIError
from container.frontend.apis.docs.route_specs import OPERATIONS, Operation
from container.frontend.apis.docs.tgi_schemas import StreamEvent

Json = dict[str, Any]
TITLE = "Language models on SageMaker"
SECURITY = {"key": {"type": "http", "scheme": "bearer", "description": "API_KEY, where it is set"}}

# Status codes with an error as their body, in every API or in one.
ERRORS = {
    400: "The body is not JSON, or not an object",
    401: "The API key is missing or wrong",
    404: "The server does not serve the model that this route needs",
    413: "The body is larger than PAYLOAD_LIMIT",
    415: "The content type is not JSON",
    429: "The server is full; Retry-After says when to try again",
    500: "A fault of the server",
    503: "Loading, shutting down, or the engine has exited; Retry-After says when to try again",
    504: "The deadline came before the first token",
}
TGI_ERRORS = {422: "A field is invalid", 424: "This generation failed"}
OPENAI_ERRORS = {400: "The body is not JSON, or a field is invalid"}
OTHER_ERRORS = (OpenAIError, AnthropicError)
# A server-sent event, as OpenAPI 3.2 describes them.
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
NOT_READY = {503: ERRORS[503]}


def document() -> Json:
    """Return the whole document."""
    schemas, definitions = _schemas()
    paths: Json = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": definitions, "securitySchemes": SECURITY},
    }


def _schemas() -> tuple[dict[int, Json], Json]:
    """Return the schema of every type in the table by its id, and their definitions."""
    bodies = [operation.body for operation in OPERATIONS if operation.body is not None]
    body_types = [
        kind for route in OPERATIONS for kind in (route.answer, route.error) if kind is not None
    ]
    body_types.append(StreamEvent)  # only in streams, which OpenAPI 3.1 cannot describe
    adapters: dict[int, tuple[int, Any, TypeAdapter[Any]]] = {}
    for mode, types in (("validation", bodies), ("serialization", body_types)):
        for kind in types:
            adapters[id(kind)] = (id(kind), mode, TypeAdapter(kind))
    schemas, definitions = TypeAdapter.json_schemas(
        adapters.values(), ref_template="#/components/schemas/{model}"
    )
    return {key: schema for (key, _), schema in schemas.items()}, definitions["$defs"]


def _operation(operation: Operation, schemas: dict[int, Json]) -> Json:
    described: Json = {
        "summary": operation.summary,
        "tags": [operation.tag],
        "operationId": f"{operation.method}_{_words(operation.path)}",
        "responses": dict(_responses(operation, schemas)),
    }
    if operation.body is not None:
        body = _json(schemas[id(operation.body)]) | _texts(operation)
        described["requestBody"] = {"required": True, "content": body}
    if operation.path_fields:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in operation.path_fields
        ]
    if operation.needs_key:
        described["security"] = [{}, {"key": []}]
    return described


def _words(path: str) -> str:
    return "_".join(re.findall(r"\w+", path))


def _responses(operation: Operation, schemas: dict[int, Json]) -> Iterator[tuple[str, Json]]:
    yield "200", {"description": "Done", "content": _content(operation, schemas)}
    error = _json(schemas[id(operation.error)])
    for status, meaning in sorted(_errors(operation).items()):
        yield str(status), {"description": meaning, "content": error}


def _content(operation: Operation, schemas: dict[int, Json]) -> Json:
    content: Json = {}
    if operation.answer is not None:
        content |= _json(schemas[id(operation.answer)])
    if operation.streams:
        content["text/event-stream"] = {"schema": EVENT}
    if operation.media:
        content[operation.media] = {"schema": {"type": "string"}}
    return content | _texts(operation)


def _texts(operation: Operation) -> Json:
    return {kind: {"schema": {"type": "string"}} for kind in operation.also}


def _errors(operation: Operation) -> dict[int, str]:
    errors = dict(NOT_READY) if operation.body is None else dict(ERRORS)
    errors[500] = ERRORS[500]
    if operation.needs_key:
        errors[401] = ERRORS[401]
    if operation.body is not None:
        has_tgi_errors = operation.error not in OTHER_ERRORS
        errors |= TGI_ERRORS if has_tgi_errors else OPENAI_ERRORS
    if operation.body is not None or operation.path_fields:
        errors[404] = "No model or adapter of that name"
    if operation.registers:
        errors[409] = "The name is taken"
    if operation.also:
        errors[406] = "None of the types in Accept can be answered"
    return errors


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}
