"""Select the LoRA adapter of a request: SageMaker's header, TGI's `adapter_id`, OpenAI's `model`.

All routes share this rule. The base model never answers for an unknown name: it is refused with the
names that are known, here or by the engine, which also knows adapters registered a moment ago.
"""

from dataclasses import replace

from container.errors import InvalidParameter, NotFound
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.service import Service

HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
# Clients of TGI and SageMaker's front door send these for the served model.
ANY_MODEL = (None, "", "tgi")


def select_by_id(context: RequestContext, name: str | None, field: str) -> RequestContext:
    """Select the adapter that a field of the body names.

    Raises InvalidParameter if the header names another.
    """
    if not name:
        return context
    if context.adapter and context.adapter != name:
        raise InvalidParameter(
            f"`{field}` is {name!r}, but the header {HEADER} is {context.adapter!r}", field=field
        )
    return replace(context, adapter=name)


def select_by_model(context: RequestContext, name: str | None, service: Service) -> RequestContext:
    """Select the adapter that `model` names, if it is not the base model.

    Raises NotFound for an unknown name. Without adapters every name means the served model, as
    with TGI.
    """
    adapters = _known(service)
    if not adapters or name in ANY_MODEL or name == service.info.model_id:
        return context
    if name not in adapters:
        known = ", ".join([service.info.model_id, *adapters])
        raise NotFound(f"model {name!r} is not known; known are: {known}", field="model")
    return select_by_id(context, name, "model")


def check_known(context: RequestContext, service: Service) -> None:
    """Refuse an unknown adapter on a route that never asks the engine. Raises NotFound."""
    adapters = _known(service)
    if context.adapter and context.adapter not in adapters:
        names = ", ".join(adapters) or "none"
        raise NotFound(
            f"adapter {context.adapter!r} is not known; known are: {names}", field="adapter"
        )


def _known(service: Service) -> list[str]:
    return [adapter.name for adapter in service.status.adapters or []]
