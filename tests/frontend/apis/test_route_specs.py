import json
import re
from collections.abc import Iterator

from container.frontend.apis.docs.openapi import document
from container.frontend.apis.docs.route_specs import OPERATIONS
from container.frontend.app import AppContext, create_app
from container.frontend.generation.service import Service
from container.frontend.options import Options
from container.settings.settings import Settings
from tests.support.connections import NoEngine

# The description of the API does not describe itself, nor the page for browsers.
UNDESCRIBED = {
    *("/openapi.json", "/api-doc/openapi.json", "/docs/", "/docs/<path:path>"),
    *("/ui", "/ui/", "/ui/<path:name>"),
}


def _routes() -> Iterator[tuple[str, str]]:
    app = create_app(
        AppContext(Service(NoEngine(), NoEngine.tokenizer), Options.from_settings(Settings()))
    )
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            if rule.rule not in UNDESCRIBED:
                yield method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)


def test_every_route_is_described_and_nothing_else() -> None:
    assert sorted(_routes()) == sorted((one.method, one.path) for one in OPERATIONS)


def test_the_document_is_whole() -> None:
    spec = document()
    text = json.dumps(spec)
    for name in re.findall(r'"\$ref": "([^"]*)"', text):
        kind, _, schema_name = name.rpartition("/")
        assert kind == "#/components/schemas"
        assert schema_name in spec["components"]["schemas"]
    ids = re.findall(r'"operationId": "([^"]*)"', text)
    assert len(ids) == len(set(ids)) == len(OPERATIONS)


def test_requests_and_answers_have_schemas() -> None:
    paths = document()["paths"]
    body = paths["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/GenerateRequest"}
    responses = paths["/v1/chat/completions"]["post"]["responses"]
    assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    wrong = responses["400"]["content"]["application/json"]["schema"]
    assert wrong == {"$ref": "#/components/schemas/OpenAIError"}
