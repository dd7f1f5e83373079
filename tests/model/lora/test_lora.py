"""LoRA: every request gets the tokens of peft's merged model, in any batch."""

import shutil
import threading
from pathlib import Path

import pytest

from container.engine.engine import Engine
from container.errors import Conflict, GenerationFailed, InvalidParameter, NotFound, Overloaded
from container.messages.engine import SamplingParams
from container.model.lora.layers import LoraLayers
from container.model.lora.manager import LoraManager
from tests.support.engines import Job, ids, run
from tests.support.models import adapters, tiny_models
from tests.support.torch_engines import adapters_of, torch_engine

PROMPTS = [[3, 5, 7, 11, 13], [50, 60, 70], [9] * 30, [100, 4, 101, 4, 102, 4]]
COUNT = 12


def _engine(folders: dict[str, Path], name: str = "llama", **sizes: int) -> Engine:
    engine = torch_engine(name, **sizes)
    for adapter, folder in folders.items():
        adapters_of(engine).add_now(adapter, str(folder), preload=True, pin=False)
    return engine


def _job(prompt: list[int], adapter: str, at_step: int = 0) -> Job:
    return Job(prompt, SamplingParams(COUNT), at_step, adapter=adapter)


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
