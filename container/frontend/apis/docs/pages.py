"""The API's description: `/openapi.json` for programs, `/docs` (Swagger UI) for people.

The page's scripts come with the package flask-swagger-ui, so it needs no internet, and its content
policy lets it reach nothing but this server.
"""

from functools import cache
from typing import Any

from flask import Blueprint, Response
from flask_swagger_ui import get_swaggerui_blueprint

from container.frontend.apis.docs.openapi import TITLE, document
from container.frontend.web.responses import json_response

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:"
)


def description() -> Blueprint:
    """Make the routes of the document, TGI's name for it too."""
    routes = Blueprint("description", __name__)
    described = _document()

    @routes.get("/openapi.json")
    @routes.get("/api-doc/openapi.json")
    def openapi() -> Response:
        return json_response(described)

    return routes


@cache
def _document() -> dict[str, Any]:
    """Return the document, which is the same for every app of a process and slow to make."""
    return document()


def swagger() -> Blueprint:
    """Make the page."""
    # The badge of a validator elsewhere is switched off.
    config = {"app_name": TITLE, "validatorUrl": None}
    routes: Blueprint = get_swaggerui_blueprint("/docs", "/openapi.json", config)

    @routes.after_request
    def stay_at_home(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = POLICY
        return response

    return routes
