"""Tiny random vision-language models of several families; pictures; what `generate` says of them.

The reference is transformers' own: AutoProcessor's classes for text and images, then `generate`.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen3_5Config,
    Qwen3VLConfig,
    SiglipVisionConfig,
)

from tests.support.models.tiny_models import DELTA

DEMO_MODEL = Path(__file__).parents[3] / "examples" / "demo-model"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}IMAGE"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"}
QWEN_MARKS = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
MARKS = {
    "llava": ["<image>"],
    **dict.fromkeys(sorted(QWEN), QWEN_MARKS),
    "idefics3": ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
    + [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)],
    "gemma3": ["<boi>", "<eoi>", "<image_soft>"],
}
# What the template writes for an image.
PLACEHOLDERS = {
    "llava": "<image>",
    **dict.fromkeys(QWEN, "<|vision_start|><|image_pad|><|vision_end|>"),
    "idefics3": "<image>",
    "gemma3": "<boi>",
}
FAMILIES = tuple(MARKS)
PROCESSORS = {
    "qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor", "qwen3_5": "Qwen3VLProcessor",
}  # fmt: skip
SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
SEEING = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "patch_size": 8,
}  # fmt: skip


def save(family: str, folder: Path) -> Path:
    """Write a model with its tokenizer, processor and chat template; always the same weights."""
    tokenizer = _tokenizer(family)
    model = _model(family, tokenizer)
    model.generation_config.eos_token_id = None  # only length ends a completion
    model.save_pretrained(folder)
    _save_processor(family, tokenizer, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("IMAGE", PLACEHOLDERS[family]))
    return folder


def _tokenizer(family: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS[family]})
    if family == "gemma3":
        names = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image_soft>"}
        tokenizer._set_model_specific_special_tokens(names)
        tokenizer.init_kwargs["extra_special_tokens"] = names
    return tokenizer


def _model(family: str, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
    ids = tokenizer.convert_tokens_to_ids
    text = SIZES | {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    image = ids(MARKS[family][0])
    if family == "llava":
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**SEEING, image_size=32, projection_dim=32),
            text_config=LlamaConfig(**text),
            image_token_index=image,
            vision_feature_layer=-1,
        )
    elif family in QWEN:
        config = _qwen_config(family, tokenizer, text)
    elif family == "idefics3":
        config = Idefics3Config(  # type: ignore[call-arg]  # its base class has pad_token_id
            vision_config=SEEING | {"image_size": 32},
            text_config=LlamaConfig(**text),
            image_token_id=image,
            scale_factor=2,
            pad_token_id=0,
        )
    else:
        config = Gemma3Config(
            vision_config=SiglipVisionConfig(**SEEING, image_size=32, vision_use_head=False),
            text_config=Gemma3TextConfig(
                **text, head_dim=16, sliding_window=8,
                layer_types=["sliding_attention", "full_attention"],
            ),
            boi_token_index=image,
            eoi_token_index=ids("<eoi>"),
            image_token_index=ids("<image_soft>"),
            mm_tokens_per_image=4,
            tie_word_embeddings=False,
        )  # fmt: skip
    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(7)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def _qwen_config(
    family: str, tokenizer: PreTrainedTokenizerBase, text: dict[str, Any]
) -> PretrainedConfig:
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    seeing = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 8}
    text = text | {"rope_parameters": rope}
    if family == "qwen2_vl":
        seeing |= {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    elif family == "qwen2_5_vl":
        seeing |= {"intermediate_size": 64, "out_hidden_size": 64, "window_size": 32,
                   "fullatt_block_indexes": [1]}  # fmt: skip
    else:
        seeing |= {"intermediate_size": 64, "out_hidden_size": 64, "num_position_embeddings": 64}
        text |= {"head_dim": 16}
    if family == "qwen3_vl":
        seeing |= {"deepstack_visual_indexes": [0, 1]}
    if family == "qwen3_5":
        text |= DELTA | {"rope_parameters": rope | {"partial_rotary_factor": 1.0}}
    return {
        "qwen2_vl": Qwen2VLConfig, "qwen2_5_vl": Qwen2_5_VLConfig,
        "qwen3_vl": Qwen3VLConfig, "qwen3_5": Qwen3_5Config,
    }[family](
        text_config=text,
        vision_config=seeing,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )  # fmt: skip


def _save_processor(family: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    square = {"height": 32, "width": 32}
    if family == "llava":
        images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square)
        LlavaProcessor(
            images, tokenizer, patch_size=8, vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        ).save_pretrained(folder)  # fmt: skip
    elif family in QWEN:
        # Its processor cannot be made without one for videos, which needs torchvision.
        images = Qwen2VLImageProcessorPil(
            patch_size=8, merge_size=2, min_pixels=16 * 16, max_pixels=64 * 64
        )
        images.save_pretrained(folder)
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        settings["processor_class"] = PROCESSORS[family]
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        tokenizer.save_pretrained(folder)
    elif family == "idefics3":
        images = Idefics3ImageProcessorPil(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        )
        Idefics3Processor(images, tokenizer, image_seq_len=4).save_pretrained(folder)
    else:
        images = Gemma3ImageProcessorPil(size=square)
        Gemma3Processor(images, tokenizer, image_seq_length=4).save_pretrained(folder)


@cache
def load(folder: Path) -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()


def generate(folder: Path, inputs: dict[str, torch.Tensor], count: int) -> list[int]:
    """What transformers' own greedy `generate` adds; no end token."""
    out = load(folder).generate(
        **inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return out[0, -count:].tolist()
