import random

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from container.errors import ModelLoadError, TemplateFailed
from container.text.detokenizer import Detokenizer
from container.text.tokenizer import Tokenizer
from tests.support.servers import DEMO_MODEL

TEXTS = [
    "Hello, world!",
    "  leading and   inner spaces ",
    "こんにちは 世界",
    "café naïve 🎉👩‍👩‍👧 done",
    "\n\ttabs\nand lines\n",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO_MODEL)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_and_never_show_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    machine = Detokenizer(tokenizer, [])
    pieces = [machine.add(token) for token in tokenizer.encode(text, add_special_tokens=False)]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + machine.flush() == text


def test_an_incomplete_character_at_the_end_is_flushed_as_it_is(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("🎉", add_special_tokens=False)
    assert len(token_ids) > 1
    machine = Detokenizer(tokenizer, [])
    assert [machine.add(token) for token in token_ids[:-1]] == [""] * (len(token_ids) - 1)
    assert machine.flush() == "\ufffd"


def test_special_tokens_give_no_text(tokenizer: Tokenizer) -> None:
    machine = Detokenizer(tokenizer, [])
    special = next(iter(tokenizer.special_ids))
    assert machine.add(special) + machine.flush() == ""


def test_invalid_bytes_do_not_pile_up_for_ever(tokenizer: Tokenizer) -> None:
    part = tokenizer.encode("🎉", add_special_tokens=False)[0]
    machine = Detokenizer(tokenizer, [])
    pieces = [machine.add(part) for _ in range(100)]
    assert "".join(pieces)


def test_random_ids_add_up_to_the_whole_decoding(tokenizer: Tokenizer) -> None:
    rnd = random.Random(0)
    text = "".join(rnd.choice(TEXTS) for _ in range(30))
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    machine = Detokenizer(tokenizer, [])
    assert "".join(map(machine.add, token_ids)) + machine.flush() == text


def test_the_template_continues_a_trailing_assistant_message(tokenizer: Tokenizer) -> None:
    user = {"role": "user", "content": "Hi"}
    open_turn = tokenizer.render_chat([user, {"role": "assistant", "content": "Well,"}])
    assert open_turn.endswith("Well,")
    assert tokenizer.render_chat([user]).endswith("assistant\n")


def test_a_failing_template_is_an_error() -> None:
    inner = AutoTokenizer.from_pretrained(DEMO_MODEL)
    user = [{"role": "user", "content": "x"}]
    inner.chat_template = "{{ raise_exception('no users, please') }}"
    with pytest.raises(TemplateFailed, match="no users, please"):
        Tokenizer(inner).render_chat(user)
    inner.chat_template = "{{ messages[5].content.x }}"
    with pytest.raises(TemplateFailed, match="refused"):
        Tokenizer(inner).render_chat(user)
    inner.chat_template = None
    with pytest.raises(TemplateFailed, match="no chat template"):
        Tokenizer(inner).render_chat(user)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelLoadError):
        Tokenizer.from_folder(tmp_path)


def test_the_space_between_prompt_and_completion_is_kept() -> None:
    vocabulary = {"\u2581Hello": 0, "\u2581world": 1, "!": 2, "<unk>": 3}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    spaced = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=inner))
    machine = Detokenizer(spaced, [0])
    assert machine.add(1) + machine.add(2) == " world!"
    assert Detokenizer(spaced, []).add(1) == "world"


def test_added_special_tokens_are_special_too() -> None:
    inner = AutoTokenizer.from_pretrained(DEMO_MODEL)
    inner.add_tokens([AddedToken("<|odd|>", special=True)])
    assert inner.convert_tokens_to_ids("<|odd|>") in Tokenizer(inner).special_ids
