"""The ids that end a completion, as models' files have them."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from container.errors import ModelLoadError
from container.model.hf_config import find_unusable
from container.model.loading.config import end_token_ids, turn_end_ids
from tests.support.chats.chat_templates import tokenizer_with

CONFIG = LlamaConfig(vocab_size=100, eos_token_id=7)


def _with(folder: Path, value: object) -> Path:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    return folder


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2, {2}),
        ([2, 3], {2, 3}),
        ([2, 2], {2}),
        (2.0, {2}),
        ([2, None], {2}),
        ([2, -1], {2}),
        ([2, 100], {2}),
        ([2, 151643], {2}),
        (99, {99}),
        (-1, {7}),
        (100, {7}),
        ([], {7}),
        (None, {7}),
        ([None], {7}),
    ],
    ids=str,
)
def test_ids_outside_the_vocabulary_are_dropped(
    tmp_path: Path, value: object, expected: set[int]
) -> None:
    assert end_token_ids(_with(tmp_path, value), CONFIG) == expected


def test_ids_that_are_left_out_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    end_token_ids(_with(tmp_path, [2, -1, 151643]), CONFIG)
    assert "generation_config.json" in caplog.text
    assert "[-1, 151643]" in caplog.text


@pytest.mark.parametrize("value", ["</s>", ["a", -5], 2.5, [[2]], {"a": 1}, True], ids=str)
def test_a_value_of_another_type_is_refused_by_its_file(tmp_path: Path, value: object) -> None:
    with pytest.raises(ModelLoadError, match=r"generation_config\.json"):
        end_token_ids(_with(tmp_path, value), CONFIG)


def test_without_any_end_only_length_ends(tmp_path: Path) -> None:
    assert end_token_ids(tmp_path, LlamaConfig(vocab_size=100, eos_token_id=-1)) == frozenset()


@pytest.mark.parametrize(
    ("value", "own", "tokenizer_ids", "expected"),
    [
        (0, 5, {2}, {0, 2}),
        ([0, 1], 5, {2}, {0, 1, 2}),
        (None, 5, {2}, {2, 5}),
        (None, None, {2}, {2}),
        (0, 5, set(), {0}),
        (None, None, {10**6}, set()),
    ],
)
def test_completions_end_at_the_tokenizers_end_token_too(
    value: object, own: int | None, tokenizer_ids: set[int], expected: set[int], tmp_path: Path
) -> None:
    config = LlamaConfig(vocab_size=100, eos_token_id=own)
    assert end_token_ids(_with(tmp_path, value), config, frozenset(tokenizer_ids)) == expected


def test_the_end_of_a_templates_turns_is_an_end(caplog: pytest.LogCaptureFixture) -> None:
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    tokenizer = tokenizer_with("{% for m in messages %}" + turn + "{% endfor %}")
    assert turn_end_ids(tokenizer, frozenset({0}), 100) == {2}
    assert "ends answers with '<|im_end|>' (2)" in caplog.text
    caplog.clear()
    assert turn_end_ids(tokenizer, frozenset({0, 2}), 100) == frozenset()
    assert turn_end_ids(tokenizer, frozenset({0}), 2) == frozenset()
    assert turn_end_ids(tokenizer, frozenset(), 100) == frozenset()
    tokenizer.stop_renderer()


@pytest.mark.parametrize("layers", [[2, 2], {"encoder": 2}, None])
def test_layers_that_are_no_number_are_left_to_transformers(layers: object) -> None:
    assert find_unusable({"num_hidden_layers": layers}, 1) is None
    assert find_unusable({"num_hidden_layers": 2}, 1) is not None


@pytest.mark.parametrize("nested", [[1], 7, "llama", True])
def test_a_text_config_that_is_no_object_is_refused(nested: object) -> None:
    assert "text_config" in str(find_unusable({"text_config": nested}, None))
    assert find_unusable({"text_config": None}, None) is None


@pytest.mark.parametrize(
    "template", ["{% if 1 %}" * 2000 + "a" + "{% endif %}" * 2000, "{{ " + "(" * 9000]
)
def test_a_deeply_nested_template_does_not_end_the_start(template: str) -> None:
    assert turn_end_ids(tokenizer_with(template), frozenset({2}), 100) == frozenset()
