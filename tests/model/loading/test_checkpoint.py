"""Layouts of a model's files that people have."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer

from container.errors import ModelLoadError
from container.messages.engine import SamplingParams
from container.model.engine_loader import load_engine
from container.model.loading.checkpoint import find_model, loadable
from container.settings.engine import MemorySettings
from container.settings.model import ModelSettings
from container.settings.settings import Settings
from tests.support.engines import Job, ids, run
from tests.support.models import tiny_models
from tests.support.servers import DEMO_MODEL

LAYOUTS = {
    "safetensors": ["weights.safetensors"],
    "shards": ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    "bin": ["model.bin"],
    "shards of bin": ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
}


def _save(folder: Path, names: list[str]) -> None:
    """Save a tiny model with its weights dealt out to these files."""
    model = tiny_models.make("llama")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    weights = model.state_dict()
    for index, name in enumerate(names):
        part = {key: weights[key].contiguous() for key in sorted(weights)[index :: len(names)]}
        if name.endswith(".bin"):
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name, {"format": "pt"})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_any_name_are_loaded(layout: str, tmp_path: Path) -> None:
    _save(tmp_path, LAYOUTS[layout])
    torch.save({"lr": 0.1}, tmp_path / "training_args.bin")
    links = loadable(tmp_path)
    assert links != tmp_path
    loaded = AutoModelForCausalLM.from_pretrained(links).state_dict()
    expected = tiny_models.make("llama").state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_layers_than_tensors_are_refused_whatever_the_files(
    layout: str, tmp_path: Path
) -> None:
    _save(tmp_path, LAYOUTS[layout])
    torch.save({"lr": 0.1}, tmp_path / "training_args.bin")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_hidden_layers": 10**6}))
    with pytest.raises(ModelLoadError, match="num_hidden_layers is 1000000, but the weights have"):
        find_model(str(tmp_path), revision=None, token=None)
    path.write_text(json.dumps(config))
    assert find_model(str(tmp_path), revision=None, token=None).path == tmp_path


def test_the_engine_serves_shards_without_an_index(tmp_path: Path) -> None:
    _save(tmp_path, LAYOUTS["shards"])
    settings = Settings(
        model=ModelSettings(model_id=str(tmp_path), dtype="float32"),
        memory=MemorySettings(max_batch_total_tokens=4096),
    )
    engine, _ = load_engine(settings, progress=lambda _: None)
    got = ids(run(engine, [Job([5, 6, 7, 8], SamplingParams(5, ignore_eos=True))])[0])
    assert got == tiny_models.reference("llama", (5, 6, 7, 8), 5)


def test_small_files_do_not_count_as_weights(tmp_path: Path) -> None:
    _save(tmp_path, ["pytorch_model.bin"])
    save_file({"projection": torch.ones(2)}, tmp_path / "projection.safetensors")
    assert find_model(str(tmp_path), revision=None, token=None).path == tmp_path


def test_the_usual_names_are_loaded_as_they_are() -> None:
    assert loadable(DEMO_MODEL) == DEMO_MODEL


def test_two_copies_of_the_weights_are_refused_with_their_names(tmp_path: Path) -> None:
    _save(tmp_path, ["a.safetensors"])
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    with pytest.raises(ModelLoadError, match=r"a\.safetensors and b\.safetensors both have"):
        loadable(tmp_path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
def test_a_broken_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\xff" * 100)
    with pytest.raises(ModelLoadError, match=f"{name} cannot be read"):
        loadable(tmp_path)


def test_a_tokenizer_of_bytes_needs_no_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelLoadError, match="the tokenizer is missing"):
        find_model(str(tmp_path), revision=None, token=None)
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert find_model(str(tmp_path), revision=None, token=None).path == tmp_path


@pytest.mark.parametrize("config", [{}, [], {"tokenizer_class": "LlamaTokenizer"}])
def test_a_configuration_alone_is_no_other_tokenizer(tmp_path: Path, config: object) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="the tokenizer is missing"):
        find_model(str(tmp_path), revision=None, token=None)


def test_a_config_that_is_nested_too_deeply_is_not_valid(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(ModelLoadError, match="not valid JSON"):
        find_model(str(tmp_path), revision=None, token=None)


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        # A long name does not fit into an address.
        here = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "is a pipe, a socket or a device"),
    "a socket": (_bind, "is a pipe, a socket or a device"),
    "a folder": (Path.mkdir, "is a folder, not a file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "cannot be read"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "cannot be read"),
}
NAMES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "merges.txt", "model.safetensors", "model.safetensors.index.json",
    "model.gguf",
)  # fmt: skip


def _spoil(folder: Path, name: str, spoil: Callable[[Path], object]) -> None:
    for usual in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / usual).write_text("{}")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    spoil(folder / name)


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_file_is_refused_by_name(name: str, kind: str, tmp_path: Path) -> None:
    spoil, reason = UNREADABLE[kind]
    _spoil(tmp_path, name, spoil)
    with pytest.raises(ModelLoadError, match=f"{name} {reason}"):
        find_model(str(tmp_path), revision=None, token=None, reads_gguf=True)


@pytest.mark.parametrize("name", [*NAMES[:5], "model.safetensors.index.json"])
def test_a_text_without_end_is_refused_by_its_size(name: str, tmp_path: Path) -> None:
    _spoil(tmp_path, name, _sparse)
    with pytest.raises(ModelLoadError, match=f"{name} has 1099511627776 bytes"):
        find_model(str(tmp_path), revision=None, token=None)


def test_files_that_no_model_consists_of_are_left_alone(tmp_path: Path) -> None:
    _spoil(tmp_path, "tokenizer.json", lambda path: path.write_text("{}"))
    os.mkfifo(tmp_path / "notes.fifo")
    (tmp_path / "pytorch_model.bin").mkdir()
    (tmp_path / "code").mkdir()
    os.mkfifo(tmp_path / "code" / "config.json")
    data = tmp_path / "data"
    data.mkdir()
    for path in (tmp_path / "train.json", tmp_path / "vocab_vectors.txt", data / "vocab.txt"):
        _sparse(path)
    for name in ("index.bin", "rows.json"):
        (data / name).symlink_to("nothing")
    (data / "secret.json").touch(mode=0)
    assert find_model(str(tmp_path), revision=None, token=None).path == tmp_path


@pytest.mark.parametrize("kind", ["a pipe", "a socket"])
def test_a_pipe_below_the_top_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    spoil, reason = UNREADABLE[kind]
    _spoil(tmp_path, "1_Pooling/config.json", spoil)
    with pytest.raises(ModelLoadError, match=f"1_Pooling/config.json {reason}"):
        find_model(str(tmp_path), revision=None, token=None)


def test_a_folder_named_like_weights_is_none(tmp_path: Path) -> None:
    _spoil(tmp_path, "pytorch_model.bin", Path.mkdir)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="the weights are missing"):
        find_model(str(tmp_path), revision=None, token=None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused_by_name(tmp_path: Path) -> None:
    _spoil(tmp_path, "tokenizer.json", lambda path: path.touch(mode=0))
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json may not be read"):
        find_model(str(tmp_path), revision=None, token=None)
