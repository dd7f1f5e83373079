"""Vision-language models: with images, too, greedy float32 output equals `generate`."""

import dataclasses
import functools
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from container.engine.engine import Engine
from container.errors import GenerationFailed, ModelLoadError
from container.images.reader import ImageReader
from container.messages.engine import SamplingParams, Submit
from container.model.execution.factory import make_runner
from container.model.execution.vision_runner import PIXELS, VisionRunner
from container.model.loaded_model import LoadedModel
from container.model.loading.config import load_config
from container.model.loading.weights import load_model
from container.model.vision.language_model import LanguageModel
from container.model.vision.prompt_inputs import PromptInputs
from container.text.tokenizer import Tokenizer
from tests.support.engines import run_sequences
from tests.support.models import tiny_vision
from tests.support.models.prepared import cpu_kernels
from tests.support.pictures import random_picture
from tests.support.torch_engines import config_for
from tests.support.vision_prompts import (
    read_prompt,
    reader_of,
    reference_inputs,
    render,
    submission,
)

CPU = torch.device("cpu")
SCHEDULES = {"roomy": 512, "small_chunks": 7, "preempting": 64}  # most tokens in a step


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vision")
    for family in tiny_vision.FAMILIES:
        tiny_vision.save(family, root / family)
    return root


@functools.cache
def _model(folder: Path) -> LoadedModel:
    _, reader = reader_of(folder)
    model = load_model(
        folder, load_config(folder), torch.float32, CPU, reader=reader, cpu_kernels=cpu_kernels()
    )
    assert model.is_multimodal
    assert model.attention == "paged", model.fallbacks
    return model


def _engine(folder: Path, **sizes: int) -> Engine:
    model = _model(folder)
    config = config_for(model, **sizes)
    return Engine(make_runner(model, config, end_token_ids=frozenset()), config, end_token_ids=())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", tiny_vision.FAMILIES)
def test_greedy_output_equals_generate(folders: Path, family: str, schedule: str) -> None:
    folder, rnd = folders / family, random.Random(5)
    expected, requests = [], []
    for index in range(10):
        sizes = [(rnd.randint(20, 70), rnd.randint(20, 70)) for _ in range(index % 3)]
        pictures = [random_picture(index, *size) for size in sizes]
        prompt = render(folder, pictures, f"What is {index}?")
        read, count = read_prompt(folder, prompt, pictures), rnd.randint(10, 30)
        inputs = reference_inputs(folder, prompt, pictures)
        assert read.ids == inputs["input_ids"][0].tolist()
        expected.append(tiny_vision.generate(folder, inputs, count))
        requests.append(submission(index, read, SamplingParams(count)))
    longest = 4 * (
        max(len(one.prompt_ids) + one.params.max_new_tokens for one in requests) // 4 + 2
    )
    room = longest // 4 + 3 if schedule == "preempting" else 400
    engine = _engine(
        folder,
        num_blocks=room,
        max_total_tokens=longest,
        max_input_tokens=longest - 1,
        max_batch_tokens=SCHEDULES[schedule],
    )
    for request in requests:
        engine.submit(b"t", request)
    got: dict[int, list[int]] = {index: [] for index in range(10)}
    while engine.has_work:
        for _, event in engine.step():
            got[event.request_id].append(event.token_id)
        engine.scheduler.check_invariants()
    assert list(got.values()) == expected
    if schedule == "preempting":
        assert engine.load.preemptions > 0


@pytest.mark.parametrize("family", tiny_vision.FAMILIES)
def test_the_answer_depends_on_the_image(folders: Path, family: str) -> None:
    folder = folders / family
    engine, answers = _engine(folder, num_blocks=400), set()
    for seed in range(4):
        picture = random_picture(seed)
        read = read_prompt(folder, render(folder, [picture], "What?"), [picture])
        engine.submit(b"t", submission(seed, read, SamplingParams(12)))
        token_ids = []
        while engine.has_work:
            token_ids += [event.token_id for _, event in engine.step()]
        answers.add(tuple(token_ids))
    assert len(answers) == 4


def test_several_sequences_of_one_request(folders: Path) -> None:
    folder, picture = folders / "qwen2_vl", random_picture(3)
    read = read_prompt(folder, render(folder, [picture], "What?"), [picture])
    engine = _engine(folder, num_blocks=400)
    request = submission(0, read, SamplingParams(9), 3)
    first, second, third = run_sequences(engine, request)
    assert first == second == third


def test_prompt_logprobs_are_the_models_own(folders: Path) -> None:
    folder, picture = folders / "idefics3", random_picture(3)
    prompt = render(folder, [picture], "What?")
    read = read_prompt(folder, prompt, [picture])
    engine = _engine(folder, num_blocks=400, max_batch_tokens=256)
    sampling_params = SamplingParams(2, prompt_logprobs=True)
    engine.submit(b"t", submission(0, read, sampling_params))
    events = []
    while not events:
        events = engine.step()
    [(_, event)] = events
    with torch.inference_mode():
        inputs = reference_inputs(folder, prompt, [picture])
        logits = tiny_vision.load(folder)(**inputs).logits[0].log_softmax(-1)
    expected = [logits[index, token].item() for index, token in enumerate(read.ids[1:])]
    assert event.prompt is not None
    assert np.allclose(event.prompt.logprobs, expected, atol=1e-3)


def test_a_model_that_sees_something_else_is_refused(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, read_prompt = VisionRunner._begin, LanguageModel.read_prompt

    def read_the_negative(*args: object) -> PromptInputs:
        read = read_prompt(*args)
        return dataclasses.replace(read, rows={name: -row for name, row in read.rows.items()})

    def see_the_negative(*args: object) -> dict[str, torch.Tensor]:
        result = begin(*args)
        return result | {name: -result[name] for name in result if PIXELS in name}

    monkeypatch.setattr(LanguageModel, "read_prompt", read_the_negative)
    folder = folders / "llava"
    model = load_model(folder, load_config(folder), torch.float32, CPU, reader=reader_of(folder)[1])
    assert model.attention == "own"
    assert "logits are off" in model.fallbacks[0]
    monkeypatch.setattr(VisionRunner, "_begin", see_the_negative)
    with pytest.raises(ModelLoadError, match=r"llava.*an image is off by"):
        load_model(folder, load_config(folder), torch.float32, CPU, reader=reader_of(folder)[1])


def test_a_broken_processor_ends_the_start(folders: Path, tmp_path: Path) -> None:
    tiny_vision.save("llava", tmp_path)
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="the image processor cannot be loaded"):
        ImageReader.from_folder(tmp_path, Tokenizer.from_folder(tmp_path))


def _run(engine: Engine, request: Submit) -> tuple[list[int], int]:
    """Run one request; return its tokens, and how many tokens of its prompt were cached."""
    engine.submit(b"t", request)
    tokens, cached = [], 0
    while engine.has_work:
        for _, event in engine.step():
            tokens.append(event.token_id)
            cached = cached if event.prompt is None else event.prompt.cached_tokens
        engine.scheduler.check_invariants()
    return tokens, cached


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_vl", "qwen3_vl"])
def test_a_second_turn_reuses_the_image_of_the_first(folders: Path, family: str) -> None:
    folder, picture = folders / family, random_picture(3, 60, 60)
    engine = _engine(folder, num_blocks=400, max_batch_tokens=64)
    first = read_prompt(folder, render(folder, [picture], "What?"), [picture])
    _run(engine, submission(0, first, SamplingParams(4)))
    prompt = render(folder, [picture], "What? And what else is there?")
    again = read_prompt(folder, prompt, [picture])
    tokens, cached = _run(engine, submission(1, again, SamplingParams(9)))
    assert cached >= again.image_end
    assert tokens == tiny_vision.generate(folder, reference_inputs(folder, prompt, [picture]), 9)
    other = random_picture(4, 60, 60)
    read = read_prompt(folder, prompt, [other])
    tokens, cached = _run(engine, submission(2, read, SamplingParams(9)))
    assert cached <= again.image_spans[0].start
    assert tokens == tiny_vision.generate(folder, reference_inputs(folder, prompt, [other]), 9)


def test_cached_images_are_not_encoded(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, picture = folders / "qwen2_vl", random_picture(3)
    engine = _engine(folder, num_blocks=400)
    read = read_prompt(folder, render(folder, [picture], "What is to be seen?"), [picture])
    tokens, _ = _run(engine, submission(0, read, SamplingParams(9)))
    monkeypatch.setattr(LanguageModel, "read_prompt", None)
    assert _run(engine, submission(1, read, SamplingParams(9)))[0] == tokens


def test_others_get_tokens_while_images_are_encoded(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, picture = folders / "llava", random_picture(3)
    engine, is_released = _engine(folder, num_blocks=400), threading.Event()
    read_images = LanguageModel.read_prompt

    def wait(*args: object) -> PromptInputs:
        assert is_released.wait(60)
        return read_images(*args)

    monkeypatch.setattr(LanguageModel, "read_prompt", wait)
    read = read_prompt(folder, render(folder, [picture], "What?"), [picture])
    text = read_prompt(folder, render(folder, [], "What?"), [])
    engine.submit(b"t", submission(0, read, SamplingParams(5)))
    engine.submit(b"t", submission(1, text, SamplingParams(20)))
    ended = [event.request_id for _ in range(20) for _, event in engine.step()]
    assert ended == [1] * 20
    is_released.set()
    rest = []
    while engine.has_work:
        rest += [event.request_id for _, event in engine.step()]
    assert rest == [0] * 5


def test_an_image_that_cannot_be_encoded_fails_alone(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, picture = folders / "llava", random_picture(3)
    engine = _engine(folder, num_blocks=400)

    def fail(*_: object) -> PromptInputs:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(LanguageModel, "read_prompt", fail)
    read = read_prompt(folder, render(folder, [picture], "What?"), [picture])
    text = read_prompt(folder, render(folder, [], "What?"), [])
    engine.submit(b"t", submission(0, read, SamplingParams(5)))
    assert len(_run(engine, submission(1, text, SamplingParams(7)))[0]) == 7
    [(_, failed, error)] = engine.take_failures()
    assert failed == 0
    assert isinstance(error, GenerationFailed)


def test_a_bidirectional_image_larger_than_a_step_is_refused(
    folders: Path,
) -> None:
    folder, picture = folders / "gemma3", random_picture(3)
    engine = _engine(folder, num_blocks=400, max_batch_tokens=3)
    read = read_prompt(folder, render(folder, [picture], "What?"), [picture])
    assert _run(engine, submission(0, read, SamplingParams(5)))[0] == []
    [(_, _, error)] = engine.take_failures()
    assert "MAX_BATCH_PREFILL_TOKENS" in str(error)
