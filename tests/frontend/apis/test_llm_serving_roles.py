"""What llm_serving's routes do before there is a model."""

from container.frontend.apis.llm_serving import with_roles
from container.frontend.app import AppContext, create_app
from container.frontend.generation.service import Service
from container.frontend.options import Options
from container.settings.settings import Settings
from tests.support.connections import NoEngine


def test_the_status_while_loading() -> None:
    app = create_app(
        AppContext(Service(NoEngine(), NoEngine.tokenizer), Options.from_settings(Settings()))
    )
    answer = app.test_client().get("/chat")
    assert answer.status_code == 200
    assert answer.json == {"status": "not started", "message": "the engine has not started yet"}


def test_only_messages_without_a_role_get_a_default_role() -> None:
    messages = [{"content": "a"}, {"role": None, "content": "b"}, {"role": "system"}, "text"]
    assert with_roles({"messages": messages, "model": "m"}) == {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "system"},
            "text",
        ],
        "model": "m",
    }
    assert with_roles({"messages": "Hi"}) == {"messages": "Hi"}
