"""Select the LoRA adapter of a request: SageMaker's header, TGI's `adapter_id`, OpenAI's `model`.

All routes share this rule. A header or field that names adapters only is refused when the name is
unknown. `model` names the served model, too, and its clients must send some name: there, a name is
refused if an adapter may be meant, because it was one's or resembles one's, or if every name has to
be known (STRICT_MODEL_NAMES). Errors list the names that are known.
"""

import difflib
from dataclasses import replace

from container.errors import InvalidParameter, NotFound
from container.frontend.generation.request_context import RequestContext
from container.frontend.generation.service import Service

HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
# Clients of TGI and SageMaker's front door send these for the served model.
ANY_MODEL = (None, "", "tgi")
# Names this similar are taken for a misspelling.
LIKENESS = 0.75


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
    """Select the adapter that `model` names; any other name means the served model, as with TGI.

    Raises NotFound for an unknown name that may be meant for an adapter, or for every unknown one.
    """
    if name is None or name in ANY_MODEL or name == service.info.model_id:
        return context
    adapters = _known(service)
    if name in adapters:
        return select_by_id(context, name, "model")
    if service.strict_model_names or may_mean(name, [*adapters, *service.status.removed_adapters]):
        known = ", ".join([service.info.model_id, *adapters])
        raise NotFound(f"model {name!r} is not known; known are: {known}", field="model")
    return context


def may_mean(name: str, adapters: list[str]) -> bool:
    """Whether a name is an adapter's but for its case, its organisation or a slip of the pen."""
    own = _last_part(name)
    others = {_last_part(adapter) for adapter in adapters}
    return bool(difflib.get_close_matches(own, others, 1, LIKENESS))


def _last_part(name: str) -> str:
    return name.strip("/").rpartition("/")[2].casefold()


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
