import json
from pathlib import Path

import pytest

from container.errors import ModelLoadError
from container.text.tokenizer import Tokenizer
from tests.support.servers import DEMO_MODEL

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "Hi"}]


def _render(path: Path) -> str:
    return Tokenizer.from_folder(DEMO_MODEL, template_path=str(path)).render_chat(MESSAGES)


@pytest.mark.parametrize(
    "expected",
    [TEMPLATE, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]],
    ids=["one", "named ones"],
)
def test_another_template_is_read_from_a_tokenizer_config(tmp_path: Path, expected: object) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"chat_template": expected}))
    assert _render(path) == "[user] Hi"


def test_another_template_is_read_from_a_jinja_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(TEMPLATE)
    assert _render(path) == "[user] Hi"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"chat_template": 1}'])
def test_a_file_without_a_template_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(content)
    with pytest.raises(ModelLoadError, match="TOKENIZER_CONFIG_PATH"):
        _render(path)
