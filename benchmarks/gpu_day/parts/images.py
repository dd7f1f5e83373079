"""Greedy float32 output of vision-language models on the device equals generate's on the CPU.

Prompts with and without images run beside each other, in chunks and with overlapped steps.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.plan import Case, Scale
from benchmarks.gpu_day.results import Recorder

# Positions of one axis, of three axes, attention both ways within an image.
FAMILIES = ("llava", "qwen2_vl", "gemma3")
NUM_TOKENS = 12
IMAGES = (1, 0, 2, 1)  # of each request
SIZES = {"block_size": 16, "num_blocks": 100, "max_batch_tokens": 64}


def cases(scale: Scale) -> list[Case]:
    """Return the cases."""
    families = FAMILIES[:1] if scale.is_small else FAMILIES
    return [Case(f"{name}: images", partial(compare, scale.device, name), 30) for name in families]


def compare(device: str, family: str, recorder: Recorder) -> None:
    """Run the requests of a tiny model; compare each with generate."""
    from tests.support.models import tiny_vision

    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / family
        tiny_vision.save(family, folder)
        expected, served = _expected(folder), _served(folder, device, recorder)
    num_equal = sum(a == b for a, b in zip(expected, served, strict=True))
    recorder.value("requests equal to generate's", num_equal, least=len(IMAGES))
    assert served == expected


def _prompts(folder: Path) -> list[tuple[str, list[Any]]]:
    from tests.support import vision_prompts
    from tests.support.pictures import random_picture

    pictures = [[random_picture(index) for index in range(count)] for count in IMAGES]
    return [
        (vision_prompts.render(folder, images, f"What is {index}?"), images)
        for index, images in enumerate(pictures)
    ]


def _expected(folder: Path) -> list[list[int]]:
    from tests.support import vision_prompts
    from tests.support.models import tiny_vision

    return [
        tiny_vision.generate(
            folder, vision_prompts.reference_inputs(folder, prompt, images), NUM_TOKENS
        )
        for prompt, images in _prompts(folder)
    ]


def _served(folder: Path, device: str, recorder: Recorder) -> list[list[int]]:
    import torch

    from container.engine.engine import Engine
    from container.messages.engine import SamplingParams
    from container.model.execution.factory import make_runner
    from container.model.loading.config import load_config
    from container.model.loading.weights import load_model
    from tests.support import vision_prompts
    from tests.support.torch_engines import config_for

    reader = vision_prompts.reader_of(folder)[1]
    on = torch.device(device)
    loaded = load_model(folder, load_config(folder), torch.float32, on, reader=reader)
    recorder.value("attention", loaded.attention)
    recorder.value("slow paths", "; ".join(loaded.fallbacks) or "none")
    config = config_for(loaded, **SIZES)
    runner = make_runner(loaded, config, end_token_ids=frozenset(), overlaps=True)
    engine = Engine(runner, config, end_token_ids=())
    for index, (prompt, images) in enumerate(_prompts(folder)):
        read = vision_prompts.read_prompt(folder, prompt, images)
        engine.submit(b"", vision_prompts.submission(index, read, SamplingParams(NUM_TOKENS)))
    ids: list[list[int]] = [[] for _ in IMAGES]
    while engine.has_work:
        for _, event in engine.step():
            ids[event.request_id].append(event.token_id)
    return ids
