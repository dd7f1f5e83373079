"""Prompts with images for tiny vision-language models.

Our processor reads them for a request, transformers' for the reference.
"""

import functools
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from container.images.reader import ImageReader, ReadPrompt
from container.messages.engine import SamplingParams, Submit
from container.text.tokenizer import Tokenizer
from tests.support.models import tiny_vision


@functools.cache
def reader_of(folder: Path) -> tuple[Tokenizer, ImageReader]:
    tokenizer = Tokenizer.from_folder(folder)
    return tokenizer, ImageReader.from_folder(folder, tokenizer)


def submission(index: int, read: ReadPrompt, params: SamplingParams, count: int = 1) -> Submit:
    return Submit(index, read.ids, params, count, images=read.images, image_spans=read.image_spans)


def render(folder: Path, pictures: list[Image.Image], words: str) -> str:
    tokenizer, _ = reader_of(folder)
    parts = [part for _ in pictures for part in ({"type": "image"}, {"type": "text", "text": "a "})]
    return tokenizer.render_chat(
        [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}]
    )


def read_prompt(folder: Path, prompt: str, pictures: list[Image.Image]) -> ReadPrompt:
    tokenizer, reader = reader_of(folder)
    if not pictures:
        return ReadPrompt(tokenizer.encode(prompt, add_special_tokens=False), {})
    return reader.read(prompt, pictures, "messages", add_special_tokens=False)


def reference_inputs(folder: Path, prompt: str, pictures: list[Image.Image]) -> dict:
    """Return what transformers' own processor makes of it."""
    if folder.name in tiny_vision.QWEN:
        return _qwen_inputs(folder, prompt, pictures)
    processor = AutoProcessor.from_pretrained(folder)
    return dict(
        processor(
            text=[prompt], images=pictures or None, add_special_tokens=False, return_tensors="pt"
        )
    )


def _qwen_inputs(folder: Path, prompt: str, pictures: list[Image.Image]) -> dict:
    """Its processor needs torchvision, for videos; this is what it does with images."""
    tokenizer, _ = reader_of(folder)
    features = {}
    if pictures:
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        features = dict(processor(pictures, return_tensors="pt"))
        for grid in features["image_grid_thw"]:
            patches = int(grid.prod()) // 4
            prompt = prompt.replace("<|image_pad|>", "<|seen|>" * patches, 1)
    prompt = prompt.replace("<|seen|>", "<|image_pad|>")
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    image = tokenizer.added_tokens["<|image_pad|>"]
    return {"input_ids": ids, "mm_token_type_ids": (ids == image).long(), **features}
