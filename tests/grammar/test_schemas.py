"""Whatever the model would say, a finished completion is valid: random tokens, many schemas."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from transformers import AutoTokenizer

from container.engine.constraint import Constraint
from container.grammar import spec
from container.grammar.matcher import GrammarCompiler
from container.text.tokenizer import Tokenizer
from tests.grammar.schemas import all_schemas
from tests.support.servers import DEMO_MODEL

SCHEMAS = dict(all_schemas())
END = 2
MAX_TOKENS = 1500


class Babbler:
    """Draws tokens at random, those that close something more often."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = [self._tokenizer.decode([i]) for i in range(len(self._tokenizer))]
        closing = np.array([any(c in text for c in '"}]') for text in texts])
        self._weights = np.where(closing, 3.0, 0.0)
        wrapped = Tokenizer(self._tokenizer)
        self.compiler = GrammarCompiler(wrapped.serialise, len(texts), [END, 0])

    def say(self, constraint: Constraint, seed: int) -> str | None:
        """What comes out; None when the budget was too small."""
        random = np.random.default_rng(seed)
        mask = np.zeros(-(-len(self._weights) // 32), np.int32)
        ids: list[int] = []
        while len(ids) < MAX_TOKENS:
            constraint.fill(mask)
            allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(self._weights)]
            assert allowed.any()
            noise = random.gumbel(size=len(self._weights))
            token_id = int(np.where(allowed, self._weights + noise, -np.inf).argmax())
            constraint.accept(token_id)
            assert not constraint.error
            ids.append(token_id)
            if constraint.is_complete or token_id in (END, 0):
                return str(self._tokenizer.decode(ids, skip_special_tokens=True))
        return None


@pytest.fixture(scope="module")
def babbler() -> Babbler:
    return Babbler(DEMO_MODEL)


def test_there_are_as_many_schemas_as_promised() -> None:
    assert len(SCHEMAS) >= 300
    assert len({json.dumps(schema) for schema in SCHEMAS.values()}) == len(SCHEMAS)


@pytest.mark.parametrize("shape", sorted({name.split("-")[0] for name in SCHEMAS}))
def test_every_finished_completion_is_valid(babbler: Babbler, shape: str) -> None:
    chosen = {name: s for name, s in SCHEMAS.items() if name.startswith(f"{shape}-")}
    finished = 0
    for seed, (name, schema) in enumerate(chosen.items()):
        grammar = spec.from_schema(schema, "schema")
        text = babbler.say(babbler.compiler.compile(grammar).result(), seed)
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
    grammar = spec.from_schema({"type": "array", "items": {"type": "integer"}}, "schema")
    for blanks in (" " * 60, "\n" * 60, "\t" * 60, "\n" + " " * 60):
        constraint = babbler.compiler.compile(grammar).result()
        accepted = [_accepts(constraint, babbler, token) for token in f"[{blanks}"]
        assert not all(accepted)


def _accepts(constraint: Constraint, babbler: Babbler, character: str) -> bool:
    [token_id] = babbler._tokenizer.encode(character, add_special_tokens=False)
    constraint.accept(token_id)
    return not constraint.error
