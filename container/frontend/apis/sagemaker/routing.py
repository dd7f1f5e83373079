"""`route=/v1/...` in SageMaker's custom attributes, as AWS's vLLM image reads it.

SageMaker forwards one path only, `/invocations`; this header chooses another of the server's routes
for the same body.
"""

import re

from flask import Response, current_app
from werkzeug.exceptions import HTTPException

from container.errors import MalformedRequest
from container.frontend.web.error_responses import dialect_of_path, errors_in

_ROUTE = re.compile(r"(?:^|[,;])\s*route=(/[^,;\s]*)")
# Who may invoke a model may not therefore register adapters; /ping reads no body.
CLOSED = frozenset({"sagemaker", "adapters", "health"})


def chosen_route(attributes: str) -> str | None:
    """Return the path that custom attributes name, if they name one."""
    match = _ROUTE.search(attributes)
    return match[1] if match else None


def answer_on(path: str) -> Response:
    """Answer the current request as if it had been sent to another path of this app.

    Raises MalformedRequest for a path that takes no POST.
    """
    try:
        endpoint, arguments = current_app.url_map.bind("").match(path, method="POST")
    except HTTPException:
        endpoint, arguments = "", {}
    if not endpoint or endpoint.partition(".")[0] in CLOSED:
        raise MalformedRequest(
            f"the custom attribute route={path[:200]} names no route that takes a body; "
            "/openapi.json lists them",
            field="route",
        )
    with errors_in(dialect_of_path(path)):
        response = current_app.ensure_sync(current_app.view_functions[endpoint])(**arguments)
    assert isinstance(response, Response)
    return response
