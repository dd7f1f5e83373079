"""Which LoRA adapter a request is for: by SageMaker's header, TGI's `adapter_id`, OpenAI's `model`.

What is chosen is kept with the request (`flask.g`), so dialects need not hand it through. Unknown
names are refused, by the engine or here, with those that are known; never served by the base model.
"""

import msgspec
from flask import g, has_request_context, request

from container.errors import InvalidParameter, NotFound
from container.frontend.generation.service import Service
from container.messages.engine import SamplingParams

HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
# What clients write for "whatever is served": those of TGI, and SageMaker's front door.
ANY_MODEL = (None, "", "tgi")


def chosen() -> str:
    """The adapter of the current request, or nothing."""
    if not has_request_context():
        return ""
    return g.get("adapter") or request.headers.get(HEADER, "").strip()


def apply_request_context(params: SamplingParams) -> SamplingParams:
    """Note the adapter of the current request."""
    adapter = chosen()
    return msgspec.structs.replace(params, adapter=adapter) if adapter else params


def choose(name: str | None, field: str) -> None:
    """Take a name that the body gives. Raises InvalidParameter when the header differs."""
    if not name:
        return
    header = request.headers.get(HEADER, "").strip()
    if header and header != name:
        raise InvalidParameter(
            f"`{field}` is {name!r}, but the header {HEADER} is {header!r}", field=field
        )
    g.adapter = name


def choose_model(name: str | None, service: Service) -> None:
    """Take `model` for an adapter's name if it is one. Raises NotFound where there are adapters.

    Without any, every name means the served model, as with TGI.
    """
    adapters = [info.name for info in service.status.adapters or []]
    if not adapters or name in ANY_MODEL or name == service.info.model_id:
        return
    if name not in adapters:
        known = ", ".join([service.info.model_id, *adapters])
        raise NotFound(f"model {name!r} is not known; known are: {known}", field="model")
    choose(name, "model")
