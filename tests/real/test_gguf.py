"""A GGUF file that others made, SmolLM2 in Q4_1, served with nothing beside it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GgufConfig, LlamaForCausalLM

from container.errors import ModelLoadError
from container.messages.engine import SamplingParams
from container.model.formats.checkpoint import is_gguf
from container.model.layers.cpu_linear import CpuLinear
from container.model.loaded_model import LoadedModel
from container.model.loading.checkpoint import ModelFiles, find_model
from container.model.loading.config import end_token_ids, load_config
from container.model.loading.weights import load_model
from container.text.tokenizer import Tokenizer
from examples import smollm2
from tests.support.engines import Job, ids, run
from tests.support.models import real_models
from tests.support.models.prepared import cpu_kernels

CPU = torch.device("cpu")
TEXT = "On 24 December 1968, at 10:05, 3 men saw the Earth rise: it's 384,400 km away.\n\tWow!"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """The file alone in a folder, described as a model's folder."""
    alone = tmp_path_factory.mktemp("gguf")
    file = alone / "model.gguf"
    shutil.copyfile(real_models.folder() / smollm2.GGUF, file)
    return find_model(str(file), revision=None, token=None, reads_gguf=True)


@pytest.fixture(scope="module")
def loaded(files: ModelFiles) -> LoadedModel:
    config = load_config(files.path)
    return load_model(files.path, config, torch.float32, CPU, cpu_kernels=cpu_kernels())


def test_tokenizer_template_and_ends_are_the_models(files: ModelFiles) -> None:
    assert is_gguf(files.path)
    own = Tokenizer.from_folder(files.path)
    known = Tokenizer.from_folder(real_models.folder())
    assert own.encode(TEXT, add_special_tokens=True) == known.encode(TEXT, add_special_tokens=True)
    messages = [{"role": "user", "content": "Hello"}]
    assert own.render_chat(messages) == known.render_chat(messages)
    own.stop_renderer()
    known.stop_renderer()
    config = load_config(files.path)
    assert end_token_ids(files.path, config) == {2}
    described = json.loads((real_models.folder() / "config.json").read_text())
    for name in ("hidden_size", "rms_norm_eps", "tie_word_embeddings", "num_key_value_heads"):
        assert getattr(config, name) == described[name], name


def test_weights_stay_in_the_files_bits(loaded: LoadedModel) -> None:
    kinds = [m.weight_args.kind for m in loaded.module.modules() if isinstance(m, CpuLinear)]
    assert kinds.count(3) >= 4 * 30, "all layers' products have four bits"
    assert 0 not in kinds
    assert not loaded.fallbacks
    assert loaded.weight_bytes < 0.2 * 2**30


def test_answers_are_those_of_the_dequantized_weights(loaded: LoadedModel) -> None:
    engine = real_models.engine(loaded)
    jobs = [
        Job(real_models.chat_ids(question), SamplingParams(24))
        for question in real_models.QUESTIONS[:4]
    ]
    got = run(engine, jobs)
    dequantized = LlamaForCausalLM.from_pretrained(
        real_models.folder(), gguf_file=smollm2.GGUF, dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()  # fmt: skip
    for index, question in enumerate(real_models.QUESTIONS[:4]):
        expected = real_models.generate(dequantized, real_models.chat_ids(question), 24)
        assert ids(got[index])[:24] == expected[:24], question


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "model.gguf"
    broken.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ModelLoadError, match=r"model\.gguf cannot be read"):
        find_model(str(broken), revision=None, token=None, reads_gguf=True)


def test_several_models_or_missing_parts_are_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelLoadError, match=r"2 GGUF models \(a\.gguf, b\.gguf\)"):
        find_model(str(tmp_path), revision=None, token=None, reads_gguf=True)
    split = tmp_path / "split"
    split.mkdir()
    (split / "c-00001-of-00002.gguf").touch()
    with pytest.raises(ModelLoadError, match=r"c-00002-of-00002\.gguf of the model is missing"):
        find_model(str(split), revision=None, token=None, reads_gguf=True)
