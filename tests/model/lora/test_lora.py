"""LoRA: every request says what peft's merged model says, whatever else is in its batch."""

import json
import os
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from container.engine.engine import Engine
from container.errors import Conflict, GenerationFailed, InvalidParameter, NotFound, Overloaded
from container.messages.engine import SamplingParams
from container.model.lora.checkpoint import read_weights
from container.model.lora.layers import LoraLayers
from container.model.lora.manager import LoraManager
from container.model.lora.record import AdapterRecord
from tests.support.engines import Job, ids, run
from tests.support.models import adapters, tiny_models
from tests.support.torch_engines import adapters_of, torch_engine

PROMPTS = [[3, 5, 7, 11, 13], [50, 60, 70], [9] * 30, [100, 4, 101, 4, 102, 4]]
COUNT = 12
KINDS = {
    "small": {"r": 2, "lora_alpha": 8},
    "attention": {"r": 8, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    "rooted": {"r": 4, "lora_alpha": 4, "use_rslora": True},
    "patterned": {"r": 4, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"down_proj": 20}},
}


def _engine(folders: dict[str, Path], name: str = "llama", **sizes: int) -> Engine:
    engine = torch_engine(name, **sizes)
    for adapter, folder in folders.items():
        adapters_of(engine).add_now(adapter, str(folder), preload=True, pin=False)
    return engine


def _job(prompt: list[int], adapter: str, at_step: int = 0) -> Job:
    return Job(prompt, SamplingParams(COUNT), at_step, adapter=adapter)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: adapters.make(root / name, "llama", seed, **config)
        for seed, (name, config) in enumerate(KINDS.items())
    }


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"max_batch_tokens": 5},
        {"num_blocks": 30, "max_total_tokens": 60, "max_input_tokens": 40},
    ],
)
def test_mixed_batches_equal_merged_models(folders: dict[str, Path], sizes: dict[str, int]) -> None:
    engine = _engine(folders, **sizes)
    requested = [(prompt, name) for prompt in PROMPTS for name in ("", *folders)]
    jobs = [_job(prompt, name, at_step=i % 3) for i, (prompt, name) in enumerate(requested)]
    events = run(engine, jobs)
    for index, (prompt, name) in enumerate(requested):
        expected = (
            adapters.generate(adapters.merged(folders[name], "llama"), prompt, COUNT)
            if name
            else tiny_models.reference("llama", tuple(prompt), COUNT)
        )
        assert ids(events[index]) == expected, name
    outputs = {
        name: ids(events[i]) for i, (prompt, name) in enumerate(requested) if prompt == PROMPTS[0]
    }
    assert len({tuple(one) for one in outputs.values()}) == len(outputs), (
        "the adapters change nothing"
    )


@pytest.mark.parametrize("model", ["qwen2", "gemma3", "gpt_neox"])
def test_other_architectures_too(tmp_path: Path, model: str) -> None:
    layers = (
        ["query_key_value", "dense_h_to_4h"] if model == "gpt_neox" else ["q_proj", "down_proj"]
    )
    folder = adapters.make(tmp_path, model, 1, target_modules=layers)
    engine = _engine({"one": folder}, model)
    events = run(engine, [_job(PROMPTS[0], "one"), _job(PROMPTS[0], "")])
    assert ids(events[0]) == adapters.generate(adapters.merged(folder, model), PROMPTS[0], COUNT)
    assert ids(events[1]) == tiny_models.reference(model, tuple(PROMPTS[0]), COUNT)


def test_a_model_with_its_own_cache_takes_adapters_too(tmp_path: Path) -> None:
    folder = adapters.make(tmp_path, "bloom", 1, target_modules=["query_key_value"])
    engine = _engine({"one": folder}, "bloom")
    events = run(engine, [_job(PROMPTS[0], "one"), _job(PROMPTS[0], "")])
    assert ids(events[0]) == adapters.generate(adapters.merged(folder, "bloom"), PROMPTS[0], COUNT)
    assert ids(events[1]) == tiny_models.reference("bloom", tuple(PROMPTS[0]), COUNT)


def test_a_cached_prefix_of_one_adapter_is_not_used_for_another(folders: dict[str, Path]) -> None:
    engine = _engine(folders)
    prompt = list(range(2, 40))
    first = run(engine, [_job(prompt, "small")])
    again = run(engine, [_job(prompt, "small"), _job(prompt, "rooted"), _job(prompt, "")])
    cached = [again[i][0].prompt.num_cached if hasattr(again[i][0].prompt, "num_cached")
              else again[i][0].prompt.cached_tokens for i in range(3)]  # fmt: skip
    assert cached[0] > 0
    assert cached[1:] == [0, 0]
    assert ids(again[0]) == ids(first[0])


def test_rows_without_an_adapter_keep_their_bits(folders: dict[str, Path]) -> None:
    params = SamplingParams(COUNT, temperature=1.0, seed=5)
    alone = run(_engine({}), [Job(PROMPTS[0], params)])
    jobs = [Job(PROMPTS[0], params), *(_job(PROMPTS[1], name) for name in folders)]
    assert ids(run(_engine(folders), jobs)[0]) == ids(alone[0])


def test_the_least_recently_used_adapter_makes_room(folders: dict[str, Path]) -> None:
    engine = _engine({}, max_adapters=2)
    store = adapters_of(engine)
    for name, folder in folders.items():
        store.add_now(name, str(folder), preload=False, pin=False)
    assert not any(info.is_loaded for info in store.infos())
    outputs = {name: ids(run(engine, [_job(PROMPTS[0], name)])[0]) for name in folders}
    assert [info.is_loaded for info in store.infos()] == [False, False, True, True]
    assert ids(run(engine, [_job(PROMPTS[0], "small")])[0]) == outputs["small"]
    assert [info.is_loaded for info in store.infos()] == [True, False, False, True]


def test_adapters_in_use_stay_and_one_more_is_refused(folders: dict[str, Path]) -> None:
    engine = _engine({}, max_adapters=1)
    store = adapters_of(engine)
    for name, folder in folders.items():
        store.add_now(name, str(folder), preload=False, pin=False)
    number = store.acquire("small")
    with pytest.raises(Overloaded, match="ADAPTERS_IN_MEMORY"):
        store.acquire("rooted")
    store.release(number)
    store.release(store.acquire("rooted"))


def test_a_pinned_adapter_is_never_evicted(folders: dict[str, Path]) -> None:
    engine = _engine({}, max_adapters=2)
    store = adapters_of(engine)
    store.add_now("small", str(folders["small"]), preload=True, pin=True)
    for name in ("attention", "rooted", "patterned"):
        store.add_now(name, str(folders[name]), preload=True, pin=False)
    assert [info.is_loaded for info in store.infos()] == [True, False, False, True]


def test_an_adapter_removed_in_use_finishes_its_request(folders: dict[str, Path]) -> None:
    engine = _engine({"small": folders["small"]})
    store = adapters_of(engine)
    expected = ids(run(engine, [_job(PROMPTS[0], "small")])[0])
    number = store.acquire("small")
    store.remove("small")
    with pytest.raises(NotFound, match="known are: none"):
        store.acquire("small")
    store.add_now("small", str(folders["rooted"]), preload=True, pin=False)
    assert ids(run(engine, [_job(PROMPTS[0], "small")])[0]) != expected
    store.release(number)
    assert len(store.infos()) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
    ],
)
def test_unsupported_lora_variants_are_refused_by_name(
    tmp_path: Path, config: dict, message: str
) -> None:
    folder = adapters.make(tmp_path, "llama", 1, **config)
    with pytest.raises(InvalidParameter, match=message):
        _engine({"one": folder})


def test_an_adapter_of_another_model_or_none_is_refused(tmp_path: Path) -> None:
    other = adapters.make(tmp_path / "a", "gpt_neox", 1, target_modules=["query_key_value"])
    with pytest.raises(InvalidParameter, match="the model has no layer"):
        _engine({"one": other})
    with pytest.raises(InvalidParameter, match="there is no folder"):
        _engine({"one": tmp_path / "nothing"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidParameter, match=r"adapter_config\.json is missing"):
        _engine({"one": tmp_path / "empty"})


def test_a_name_twice_is_a_conflict(folders: dict[str, Path]) -> None:
    engine = _engine({"small": folders["small"]})
    with pytest.raises(Conflict):
        adapters_of(engine).add_now("small", str(folders["rooted"]), preload=True, pin=False)


CONFIG_CHANGES = {
    "no r": lambda config: config.pop("r"),
    "r: text": lambda config: config.update(r="4"),
    "r: 0": lambda config: config.update(r=0),
    "r: -1": lambda config: config.update(r=-1),
    "r: null": lambda config: config.update(r=None),
    "r: true": lambda config: config.update(r=True),
    "r: list": lambda config: config.update(r=[4]),
    "alpha: text": lambda config: config.update(lora_alpha="8"),
    "alpha: list": lambda config: config.update(lora_alpha=[]),
    "pattern: not a regex": lambda config: config.update(rank_pattern={"(": 1}),
    "pattern: list": lambda config: config.update(rank_pattern=[1]),
    "pattern: text": lambda config: config.update(rank_pattern="q_proj"),
    "pattern: rank 0": lambda config: config.update(rank_pattern={"q_proj": 0}),
    "pattern: rank text": lambda config: config.update(rank_pattern={"q_proj": "a"}),
    "pattern: exponential": lambda config: config.update(rank_pattern={"(a|a|[a-z._0-9])*$": 1}),
    "pattern: many repetitions": lambda config: config.update(alpha_pattern={".*.*.*.*x": 1}),
    "alpha pattern: text": lambda config: config.update(alpha_pattern={"q_proj": "a"}),
    "alpha pattern: not a regex": lambda config: config.update(alpha_pattern={"*": 1}),
    "peft_type: list": lambda config: config.update(peft_type=[]),
    "bias: list": lambda config: config.update(bias=["none"]),
}


@pytest.mark.parametrize("change", CONFIG_CHANGES.values(), ids=CONFIG_CHANGES.keys())
def test_a_config_that_cannot_be_right_is_refused_by_its_file(
    folders: dict[str, Path], tmp_path: Path, change: Callable[[dict[str, object]], object]
) -> None:
    shutil.copytree(folders["small"], tmp_path / "copy")
    path = tmp_path / "copy" / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(InvalidParameter, match=r"adapter_config\.json"):
        read_weights(path.parent, {}, torch.float32)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b'"LORA"', b"\xff\xfe", b"[" * 100_000, b" " * 2_000_000],
    ids=lambda text: repr(text[:8]),
)
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "adapter_config.json").write_bytes(text)
    with pytest.raises(InvalidParameter, match=r"adapter_config\.json"):
        read_weights(tmp_path, {}, torch.float32)


def test_a_config_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "adapter_config.json").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "adapter_config.json")
    for name in ("a", "b"):
        with pytest.raises(InvalidParameter, match="is missing"):
            read_weights(tmp_path / name, {}, torch.float32)


KEY = "base_model.model.layer"
EYE = torch.ones(2, 4)
TENSORS = {
    "one half": {f"{KEY}.lora_A.weight": EYE},
    "a vector": {f"{KEY}.lora_A.weight": EYE[0], f"{KEY}.lora_B.weight": EYE.T},
    "a number": {f"{KEY}.lora_A.weight": EYE[0, 0], f"{KEY}.lora_B.weight": EYE.T},
    "rank 0": {f"{KEY}.lora_A.weight": EYE[:0], f"{KEY}.lora_B.weight": EYE.T[:, :0]},
    "another shape": {f"{KEY}.lora_A.weight": EYE.T, f"{KEY}.lora_B.weight": EYE},
    "integers": {f"{KEY}.lora_A.weight": EYE.int(), f"{KEY}.lora_B.weight": EYE.T.int()},
    "NaN": {f"{KEY}.lora_A.weight": EYE * float("nan"), f"{KEY}.lora_B.weight": EYE.T},
    "infinite": {f"{KEY}.lora_A.weight": EYE, f"{KEY}.lora_B.weight": EYE.T * float("inf")},
    "too large for its format": {f"{KEY}.lora_A.weight": EYE, f"{KEY}.lora_B.weight": EYE.T * 1e6},
    "another layer": {"base_model.model.other.lora_A.weight": EYE},
    "no LoRA tensor": {f"{KEY}.weight": EYE},
}


@pytest.mark.parametrize("tensors", TENSORS.values(), ids=TENSORS.keys())
def test_weights_that_cannot_be_right_are_refused_by_their_file(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InvalidParameter, match=r"adapter_model\.safetensors"):
        read_weights(tmp_path, {"layer": (4, 4)}, torch.float16)


@pytest.mark.parametrize("kind", ["F8_E8M0", "F4"])
def test_weights_of_a_type_that_torch_does_not_read_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    size = 8 if kind == "F8_E8M0" else 4
    parts = {"A": ([2, 4], [0, size]), "B": ([4, 2], [size, 2 * size])}
    header = json.dumps(
        {
            f"{KEY}.lora_{half}.weight": {"dtype": kind, "shape": shape, "data_offsets": offsets}
            for half, (shape, offsets) in parts.items()
        }
    ).encode()
    whole = struct.pack("<Q", len(header)) + header + bytes(2 * size)
    (tmp_path / "adapter_model.safetensors").write_bytes(whole)
    with pytest.raises(InvalidParameter, match=r"adapter_model\.safetensors"):
        read_weights(tmp_path, {"layer": (4, 4)}, torch.float16)


def test_an_adapter_without_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    (tmp_path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(InvalidParameter, match="has no tensors"):
        read_weights(tmp_path, {"layer": (4, 4)}, torch.float32)


@pytest.mark.parametrize(("rank", "width"), [(3, 4), (10**7, 4), (10**7, 5)])
def test_weights_of_wrong_shapes_are_refused_unread(tmp_path: Path, rank: int, width: int) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    size = rank * 5 * 4
    header = json.dumps(
        {
            f"{KEY}.lora_A.weight": {
                "dtype": "F32", "shape": [rank, 5], "data_offsets": [0, size]
            },
            f"{KEY}.lora_B.weight": {
                "dtype": "F32", "shape": [5, rank], "data_offsets": [size, 2 * size]
            },
        }
    ).encode()  # fmt: skip
    with (tmp_path / "adapter_model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * size)  # without a block on the disk
    with pytest.raises(InvalidParameter, match="trained for another model"):
        read_weights(tmp_path, {"layer": (width, width)}, torch.float32)


@pytest.mark.parametrize(
    "source", ["x" * 5000, "x" * 4000, "~nobody-here/x", "a\0b", "", "/etc/passwd", "a/b/c", "."]
)
def test_a_missing_adapter_folder_fails_alone(folders: dict[str, Path], source: str) -> None:
    engine = _engine({"small": folders["small"]})
    with pytest.raises(InvalidParameter, match="src"):
        adapters_of(engine).add_now("bad", source)
    assert [info.name for info in engine.adapters.infos()] == ["small"]
    assert ids(run(engine, [_job(PROMPTS[0], "small")])[0])


def test_steps_go_on_while_an_adapter_is_downloaded(folders: dict[str, Path]) -> None:
    engine = torch_engine("llama")
    is_released = threading.Event()

    def download(name: str, **_: object) -> str:
        assert is_released.wait(60)
        return str(folders["small"])

    store = engine.requests.adapters = LoraManager(
        adapters_of(engine).lora_layers, 8, download=download
    )
    is_registered = store.add("slow", "owner/name")
    assert ids(run(engine, [_job(PROMPTS[0], "")])[0])
    assert not is_registered.done()
    assert store.has_work
    is_released.set()
    while not is_registered.done():
        store.poll()
    assert is_registered.exception() is None
    assert store.infos()[0].is_loaded


def test_a_request_waits_for_its_adapter_and_the_others_do_not(folders: dict[str, Path]) -> None:
    engine = torch_engine("llama", max_adapters=1)
    store = adapters_of(engine)
    for name in ("small", "rooted"):
        store.add_now(name, str(folders[name]), preload=False)
    events = run(engine, [_job(PROMPTS[0], "small"), _job(PROMPTS[0], "", at_step=1)])
    assert ids(events[0]) != ids(events[1])
    assert ids(events[1]) == tiny_models.reference("llama", tuple(PROMPTS[0]), COUNT)


def test_a_deleted_adapter_fails_its_requests_only(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    engine = torch_engine("llama")
    shutil.copytree(folders["small"], tmp_path / "copy")
    adapters_of(engine).add_now("gone", str(tmp_path / "copy"), preload=False)
    adapters_of(engine).add_now("small", str(folders["small"]))
    shutil.rmtree(tmp_path / "copy")
    events = run(engine, [_job(PROMPTS[0], "gone"), _job(PROMPTS[0], "small")])
    assert not events[0]
    ((_, request_id, error),) = engine.take_failures()
    assert (request_id, type(error)) == (0, InvalidParameter)
    assert len(ids(events[1])) == COUNT


def test_a_broken_adapter_does_not_affect_others(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine({"small": folders["small"]})
    expected = ids(run(engine, [_job(PROMPTS[0], "small")])[0])

    def fail(_: object, adapters: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(LoraLayers, "build", fail)
        with pytest.raises(GenerationFailed):
            adapters_of(engine).add_now("rooted", str(folders["rooted"]))
    assert [info.name for info in engine.adapters.infos()] == ["small"]
    assert ids(run(engine, [_job(PROMPTS[0], "small")])[0]) == expected
    adapters_of(engine).add_now("rooted", str(folders["rooted"]))


def test_a_restarted_engine_knows_the_adapters_again(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    record = AdapterRecord(tmp_path / "adapters.json")
    first = _recording(record)
    first.add_now("small", str(folders["small"]))
    first.add_now("pinned", str(folders["rooted"]), pin=True)
    again = _recording(record)
    assert [(one.name, one.is_pinned) for one in again.infos()] == [
        ("small", False),
        ("pinned", True),
    ]


@pytest.mark.parametrize(
    "text",
    ["", "[", '[["small", "/no', "{}", "[1]", "[[]]", "null", '[["gone", "/none", true]]'],
)
def test_a_damaged_adapter_record_does_not_end_the_start(
    folders: dict[str, Path], tmp_path: Path, text: str
) -> None:
    (tmp_path / "adapters.json").write_text(text)
    store = _recording(AdapterRecord(tmp_path / "adapters.json"))
    assert store.infos() == []
    store.add_now("small", str(folders["small"]))
    assert "small" in (tmp_path / "adapters.json").read_text()


def test_a_record_that_cannot_be_written_refuses_no_adapter(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = _recording(AdapterRecord(tmp_path / "no folder" / "adapters.json"))
    store.add_now("small", str(folders["small"]))
    assert [info.name for info in store.infos()] == ["small"]
    assert "cannot be written (No such file" in caplog.text


def _recording(record: AdapterRecord) -> LoraManager:
    layers = adapters_of(torch_engine("llama")).lora_layers
    store = LoraManager(layers, 8, record)
    store.start_recording()
    return store
