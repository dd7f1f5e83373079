"""Options of the server with images in the prompts, beside prompts of text alone."""

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from container.engine.engine import Engine
from container.engine.process import PREPARE_POLL_S
from container.errors import InvalidParameter
from container.messages.engine import SamplingParams, Submit
from container.model.execution.factory import make_runner
from container.model.loading.config import load_config
from container.model.loading.weights import load_model
from container.model.lora.layers import LoraLayers
from container.model.lora.manager import LoraManager
from tests.support.grammars import ScriptedGrammars
from tests.support.models import adapters, tiny_vision
from tests.support.models.prepared import cpu_kernels
from tests.support.pictures import random_picture
from tests.support.torch_engines import adapters_of, config_for
from tests.support.vision_prompts import (
    read_prompt,
    reader_of,
    reference_inputs,
    render,
)

CPU = torch.device("cpu")
FAMILIES = ["llava", "qwen2_vl", "gemma3"]
COUNT = 12
SIZES = {"num_blocks": 400, "max_batch_tokens": 64}
VISION_LAYER = r".*vision.*\.(q_proj|fc1|qkv)"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vision")
    for family in FAMILIES:
        tiny_vision.save(family, root / family)
    return root


def _engine(
    folder: Path, grammars: ScriptedGrammars | None = None, load: dict[str, Any] | None = None,
    **sizes: int,
) -> Engine:  # fmt: skip
    """An engine of a model that was loaded with these options."""
    _, reader = reader_of(folder)
    loaded = load_model(
        folder, load_config(folder), torch.float32, CPU, reader=reader, cpu_kernels=cpu_kernels(),
        **load or {},
    )  # fmt: skip
    assert loaded.attention == "paged", loaded.fallbacks
    layers = LoraLayers(loaded.module, loaded.dtype, CPU)
    config = config_for(loaded, **SIZES | sizes)
    runner = make_runner(loaded, config, end_token_ids=frozenset(), lora_layers=layers)
    return Engine(
        runner, config, end_token_ids=(), adapters=LoraManager(layers, 4), grammars=grammars
    )


def _requests(folder: Path, **options: Any) -> list[Submit]:
    """Three prompts: with an image, with another one, and without."""
    pictures = [[random_picture(seed)] for seed in (1, 2)]
    reads = [
        read_prompt(folder, render(folder, images, f"What is {number}?"), images)
        for number, images in enumerate([*pictures, []])
    ]
    return [
        Submit(
            index, read.ids, SamplingParams(COUNT), images=read.images,
            image_spans=read.image_spans, **options,
        )
        for index, read in enumerate(reads)
    ]  # fmt: skip


def _expected(folder: Path) -> list[list[int]]:
    pictures = [[random_picture(1)], [random_picture(2)], []]
    answers = []
    for number, images in enumerate(pictures):
        prompt = render(folder, images, f"What is {number}?")
        inputs = reference_inputs(folder, prompt, images)
        answers.append(tiny_vision.generate(folder, inputs, COUNT))
    return answers


def _run(engine: Engine, requests: list[Submit]) -> list[list[int]]:
    answers: dict[int, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.submit(b"t", request)
    for _ in itertools.takewhile(lambda _: engine.has_work, range(10_000)):
        for _, event in engine.step():
            answers[event.request_id].append(event.token_id)
        engine.scheduler.check_invariants()
        if not engine.has_scheduled:
            time.sleep(PREPARE_POLL_S)  # as the engine's process does while images are read
    return list(answers.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_change_nothing(folders: Path, family: str) -> None:
    engine = _engine(folders / family, speculate=3)
    assert _run(engine, _requests(folders / family)) == _expected(folders / family)
    # The second time every draft of a prompt's own words may be right, and the images are cached.
    assert _run(engine, _requests(folders / family)) == _expected(folders / family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_grammar_ends_an_answer_about_an_image(folders: Path, family: str) -> None:
    grammars = ScriptedGrammars()
    engine = _engine(folders / family, grammars)
    [request, other, text] = _requests(folders / family)
    params = SamplingParams(COUNT, grammar="ends 3")
    bound = Submit(
        0, request.prompt_ids, params, images=request.images, image_spans=request.image_spans
    )
    engine.submit(b"t", bound)
    for each in (other, text):
        engine.submit(b"t", each)
    got: dict[int, list[int]] = {0: [], 1: [], 2: []}
    while engine.has_work:
        grammars.finish_one()
        for _, event in engine.step():
            got[event.request_id].append(event.token_id)
        engine.scheduler.check_invariants()
    first, second, third = _expected(folders / family)
    assert list(got.values()) == [first[:3], second, third]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_holds_the_blocks_of_its_image(folders: Path, family: str) -> None:
    # There is room for one prompt more than the session's.
    requests = _requests(folders / family, session="one", session_s=60.0)
    longest = max(len(request.prompt_ids) for request in requests) + COUNT
    longest += -longest % 4 + 4
    sizes = {"max_total_tokens": longest, "max_input_tokens": longest - 1}
    engine = _engine(folders / family, num_blocks=longest // 2 + 2, **sizes)
    expected = _expected(folders / family)
    assert _run(engine, requests[:1]) == expected[:1]
    others = _requests(folders / family)
    for number, request in enumerate(others[1:] * 3):
        again = Submit(
            10 + number, request.prompt_ids, request.params, images=request.images,
            image_spans=request.image_spans,
        )  # fmt: skip
        assert _run(engine, [again]) in ([expected[1]], [expected[2]])
    before = engine.load.cached_tokens
    assert _run(engine, requests[:1]) == expected[:1]
    assert engine.load.cached_tokens - before >= requests[0].image_spans[0].stop // 4 * 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "load", [{"quantize": "int8"}, {"quantize": "int4"}, {"cache_dtype": torch.float8_e4m3fn}]
)
def test_fewer_bits_give_the_same_answers_in_a_batch_and_alone(
    folders: Path, family: str, load: dict[str, Any]
) -> None:
    engine = _engine(folders / family, load=load)
    requests = _requests(folders / family)
    together = _run(engine, requests)
    alone = [_run(_engine(folders / family, load=load), [request])[0] for request in requests[:1]]
    assert together[:1] == alone
    assert together[0] != together[1]  # the images differ


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_an_adapter_of_the_language_model_answers_about_an_image(
    folders: Path, family: str, tmp_path: Path
) -> None:
    folder = folders / family
    layers = r".*language_model.*\.(q_proj|v_proj|up_proj)"
    adapters.save(tmp_path, _fresh(folder), 1, target_modules=layers)
    engine = _engine(folder)
    adapters_of(engine).add_now("one", str(tmp_path), preload=True, pin=False)
    [adapted, *_] = _requests(folder, adapter="one")
    [_, *others] = _requests(folder)
    picture = [random_picture(1)]
    inputs = reference_inputs(folder, render(folder, picture, "What is 0?"), picture)
    merged = adapters.merge(tmp_path, _fresh(folder))
    out = merged.generate(
        **inputs, max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False, eos_token_id=None
    )
    expected = [out[0, -COUNT:].tolist(), *_expected(folder)[1:]]
    assert _run(engine, [adapted, *others]) == expected
    assert expected[0] != _expected(folder)[0]


def test_an_adapter_of_the_image_encoder_is_refused(folders: Path, tmp_path: Path) -> None:
    adapters.save(tmp_path, _fresh(folders / "llava"), 1, target_modules=VISION_LAYER)
    engine = _engine(folders / "llava")
    with pytest.raises(InvalidParameter, match="vision"):
        adapters_of(engine).add_now("one", str(tmp_path), preload=True, pin=False)


def _fresh(folder: Path) -> Any:
    return tiny_vision.load.__wrapped__(folder)
