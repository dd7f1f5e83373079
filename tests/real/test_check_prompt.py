"""The checks at start run on ids that the model would really see."""

from typing import Any

import pytest

from container.model.checks.check_prompt import CHECK_TEXT, encode_check_prompt
from container.model.checks.layer_check import ReferencePass
from container.model.engine_loader import load_engine
from container.model.reference_check import NUM_IDS
from container.settings.engine import MemorySettings
from container.settings.model import ModelSettings
from container.settings.settings import Settings
from container.text.tokenizer import Tokenizer
from tests.support.models import real_models
from tests.support.models.real_models import GEMMA3


def test_layers_are_checked_on_the_models_own_template(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    init = ReferencePass.__init__

    def record(self: ReferencePass, module: Any, prompt: Any, *args: Any, **options: Any) -> None:
        seen.append(list(prompt.ids))
        init(self, module, prompt, *args, **options)

    monkeypatch.setattr(ReferencePass, "__init__", record)
    settings = Settings(
        model=ModelSettings(model_id=str(real_models.folder()), dtype="bfloat16"),
        memory=MemorySettings(max_batch_total_tokens=4096),
    )
    _, info = load_engine(settings, progress=lambda _: None)
    assert not info.fallbacks
    expected = real_models.chat_ids(CHECK_TEXT)[:NUM_IDS]
    assert len(expected) == NUM_IDS
    assert seen
    assert all(ids == expected for ids in seen)
    tokens = real_models.tokenizer().convert_ids_to_tokens(expected)
    assert tokens[:2] == ["<|im_start|>", "system"]
    assert tokens.count("<|im_start|>") == 2, "the user's turn begins within the checked ids"


def test_a_base_model_is_checked_on_text_after_its_first_token() -> None:
    tokenizer = Tokenizer.from_folder(real_models.folder(GEMMA3))
    ids = encode_check_prompt(tokenizer)
    expected = real_models.tokenizer(GEMMA3)(CHECK_TEXT)["input_ids"]
    assert ids == expected[:NUM_IDS]
    assert ids[0] == 2, "<bos>"
