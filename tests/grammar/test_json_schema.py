"""Whatever the model would say, a finished completion is valid: random tokens, many schemas."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from container.grammar.forms import schema_answer
from container.grammar.shape import MessageShape
from tests.grammar.schemas import all_schemas
from tests.support.models.babbler import Babbler
from tests.support.servers import DEMO_MODEL

SCHEMAS = dict(all_schemas())


@pytest.fixture(scope="module")
def babbler() -> Iterator[Babbler]:
    babbler = Babbler(DEMO_MODEL)
    yield babbler
    babbler.close()


def test_there_are_as_many_schemas_as_promised() -> None:
    assert len(SCHEMAS) >= 300
    assert len({json.dumps(schema) for schema in SCHEMAS.values()}) == len(SCHEMAS)


@pytest.mark.slow
@pytest.mark.parametrize("shape", sorted({name.split("-")[0] for name in SCHEMAS}))
def test_every_finished_completion_is_valid(babbler: Babbler, shape: str) -> None:
    chosen = {name: s for name, s in SCHEMAS.items() if name.startswith(f"{shape}-")}
    finished = 0
    for seed, (name, schema) in enumerate(chosen.items()):
        shape = MessageShape(answer=schema_answer(schema, "schema"))
        text = babbler.say(babbler.compile(shape), seed)
        if text is not None:
            finished += 1
            _check(name, schema, text)
    assert finished > 0.8 * len(chosen)


def _check(name: str, schema: dict[str, Any], text: str) -> None:
    try:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
    except (ValueError, jsonschema.ValidationError) as error:
        pytest.fail(f"{name}: {error}: {text}")


def test_blanks_cannot_eat_the_budget(babbler: Babbler) -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    shape = MessageShape(answer=schema_answer(schema, "schema"))
    for blanks in (" " * 60, "\n" * 60, "\t" * 60, "\n" + " " * 60):
        constraint = babbler.compile(shape)
        tokens = babbler.encode(f"[{blanks}")
        assert any(babbler.accept(constraint, token_id) for token_id in tokens)
