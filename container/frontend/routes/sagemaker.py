"""SageMaker's `/invocations`: tells the shapes apart and hands each to its own dialect.

`messages_api` True takes messages only, False generate only, None both. A body that has `inputs`
is a generate request even if it has `messages` too, as in TGI.
"""

from flask import Blueprint, Response, request

from container.errors import InvalidParameter, MalformedRequest
from container.frontend import problems
from container.frontend.bodies import read_object
from container.frontend.routes.handler import HandlerDialect
from container.frontend.routes.openai import OpenAIDialect
from container.frontend.routes.tgi import TgiDialect


def blueprint(
    tgi: TgiDialect,
    openai: OpenAIDialect,
    handler: HandlerDialect | None,
    *,
    messages_api: bool | None,
) -> Blueprint:
    """Make the route. User code, where there is some, answers in place of the dialects."""
    routes = Blueprint("sagemaker", __name__)

    @routes.post("/invocations")
    def invocations() -> Response:
        if handler is not None:
            return handler.invoke()
        if messages_api:
            problems.speak_openai()
        body = read_object(request)
        if _is_chat(body, messages_api):
            problems.speak_openai()
            return openai.chat(body)
        return tgi.generate(body, streams=None, as_array=True, echo_default=True)

    return routes


def _is_chat(body: dict[str, object], messages_api: bool | None) -> bool:
    if messages_api is True:
        if "messages" not in body:
            raise InvalidParameter(
                "`messages` is missing (MESSAGES_API_ENABLED=true takes messages only)",
                field="messages",
            )
        return True
    if "inputs" in body:
        return False
    if messages_api is False:
        raise InvalidParameter(
            "`inputs` is missing (MESSAGES_API_ENABLED=false takes generate bodies only)",
            field="inputs",
        )
    if "messages" in body:
        return True
    raise MalformedRequest("the body has neither `inputs` nor `messages`")
