"""LoRA: every request says what peft's merged model says, whatever else is in its batch."""

from pathlib import Path

import pytest

from container.engine.engine import Engine
from container.errors import Conflict, InvalidParameter, NotFound, Overloaded
from container.messages.engine import SamplingParams
from tests.support.engines import Job, ids, run, torch_engine
from tests.support.models import adapters, tiny_models

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
    assert engine.adapters is not None
    for adapter, folder in folders.items():
        engine.adapters.add_now(adapter, str(folder), preload=True, pin=False)
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
def test_mixed_batches_say_what_the_merged_models_say(
    folders: dict[str, Path], sizes: dict[str, int]
) -> None:
    engine = _engine(folders, **sizes)
    wanted = [(prompt, name) for prompt in PROMPTS for name in ("", *folders)]
    jobs = [_job(prompt, name, at_step=i % 3) for i, (prompt, name) in enumerate(wanted)]
    events = run(engine, jobs)
    for index, (prompt, name) in enumerate(wanted):
        expected = (
            adapters.generate(adapters.merged(folders[name], "llama"), prompt, COUNT)
            if name
            else tiny_models.reference("llama", tuple(prompt), COUNT)
        )
        assert ids(events[index]) == expected, name
    said = {name: ids(events[i]) for i, (prompt, name) in enumerate(wanted) if prompt == PROMPTS[0]}
    assert len({tuple(one) for one in said.values()}) == len(said), "the adapters change nothing"


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
    store = engine.adapters
    assert store is not None
    for name, folder in folders.items():
        store.add_now(name, str(folder), preload=False, pin=False)
    assert not any(info.is_loaded for info in store.infos())
    said = {name: ids(run(engine, [_job(PROMPTS[0], name)])[0]) for name in folders}
    assert [info.is_loaded for info in store.infos()] == [False, False, True, True]
    assert ids(run(engine, [_job(PROMPTS[0], "small")])[0]) == said["small"]
    assert [info.is_loaded for info in store.infos()] == [True, False, False, True]


def test_adapters_in_use_stay_and_one_more_is_refused(folders: dict[str, Path]) -> None:
    engine = _engine({}, max_adapters=1)
    store = engine.adapters
    assert store is not None
    for name, folder in folders.items():
        store.add_now(name, str(folder), preload=False, pin=False)
    number = store.acquire("small")
    with pytest.raises(Overloaded, match="ADAPTERS_IN_MEMORY"):
        store.acquire("rooted")
    store.release(number)
    store.release(store.acquire("rooted"))


def test_a_pinned_adapter_is_never_evicted(folders: dict[str, Path]) -> None:
    engine = _engine({}, max_adapters=2)
    store = engine.adapters
    assert store is not None
    store.add_now("small", str(folders["small"]), preload=True, pin=True)
    for name in ("attention", "rooted", "patterned"):
        store.add_now(name, str(folders[name]), preload=True, pin=False)
    assert [info.is_loaded for info in store.infos()] == [True, False, False, True]


def test_an_adapter_removed_in_use_finishes_its_request(folders: dict[str, Path]) -> None:
    engine = _engine({"small": folders["small"]})
    store = engine.adapters
    assert store is not None
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
    ("config", "told"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(tmp_path: Path, config: dict, told: str) -> None:
    folder = adapters.make(tmp_path, "llama", 1, **config)
    with pytest.raises(InvalidParameter, match=told):
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
    assert engine.adapters is not None
    with pytest.raises(Conflict):
        engine.adapters.add_now("small", str(folders["rooted"]), preload=True, pin=False)
