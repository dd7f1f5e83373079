"""Models of each kind with random weights: dense, sinks, recurrent hybrids, encoder-decoder, ...

`mid` has some 60M to 150M parameters, of which the embedding is a third; `tiny` only shows that the
benchmark works. All have the vocabulary of bench_model.py and never choose the end token.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.models.bench_model import VOCABULARY, write_tokenizer

POSITIONS = 2048
FOLDER = "models-benchmark-{}-{}-v1"


@dataclass(frozen=True, slots=True)
class Size:
    """Sizes that the kinds share; a head has 64 dimensions, or 16 in a tiny model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int

    @property
    def head_dim(self) -> int:
        """Dimensions of a head."""
        return self.hidden // self.heads


SIZES = {"mid": Size(512, 12, 8, 4, 1536), "tiny": Size(64, 2, 4, 2, 128)}


def _common(size: Size) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "hidden_size": size.hidden, "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads, "num_key_value_heads": size.kv_heads,
        "intermediate_size": size.inner, "max_position_embeddings": POSITIONS,
        "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": False,
    }  # fmt: skip


def _alternating(size: Size, first: str, second: str, every: int = 2) -> list[str]:
    return [second if (layer + 1) % every == 0 else first for layer in range(size.layers)]


def _dense(size: Size) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**_common(size), head_dim=size.head_dim)


def _sinks(size: Size) -> Any:
    from transformers import GptOssConfig

    return GptOssConfig(
        **_common(size) | {"intermediate_size": size.inner // 4}, head_dim=size.head_dim,
        num_local_experts=8, num_experts_per_tok=2, sliding_window=128,
        layer_types=_alternating(size, "sliding_attention", "full_attention"),
    )  # fmt: skip


def _gated_delta(size: Size) -> Any:
    from transformers import Qwen3_5TextConfig

    return Qwen3_5TextConfig(
        **_common(size), head_dim=size.head_dim, linear_num_value_heads=size.heads,
        linear_num_key_heads=size.kv_heads, linear_key_head_dim=size.head_dim,
        linear_value_head_dim=size.head_dim,
        layer_types=_alternating(size, "linear_attention", "full_attention", min(4, size.layers)),
    )  # fmt: skip


def _mamba2(size: Size) -> Any:
    from transformers import GraniteMoeHybridConfig

    return GraniteMoeHybridConfig(
        **_common(size), mamba_n_heads=2 * size.heads, mamba_d_head=size.head_dim,
        mamba_n_groups=1, mamba_d_state=32, mamba_expand=2,
        layer_types=_alternating(size, "mamba", "attention", min(4, size.layers)),
        num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=size.inner,
    )  # fmt: skip


def _alibi(size: Size) -> Any:
    from transformers import BloomConfig

    return BloomConfig(  # type: ignore[call-arg]  # seq_length is an alias
        vocab_size=VOCABULARY, hidden_size=size.hidden, n_layer=size.layers, n_head=size.heads,
        bos_token_id=None, eos_token_id=0, pad_token_id=0, seq_length=POSITIONS,
    )  # fmt: skip


def _latents(size: Size) -> Any:
    from transformers import DeepseekV3Config

    return DeepseekV3Config(
        **_common(size) | {"num_key_value_heads": size.heads}, kv_lora_rank=size.hidden // 4,
        q_lora_rank=None, qk_rope_head_dim=size.head_dim // 2, qk_nope_head_dim=size.head_dim,
        v_head_dim=size.head_dim, n_routed_experts=8, num_experts_per_tok=2, n_group=1,
        topk_group=1, moe_intermediate_size=size.inner // 4, first_k_dense_replace=1,
        n_shared_experts=1,
    )  # fmt: skip


def _encoder_decoder(size: Size) -> Any:
    from transformers import T5Config

    return T5Config(  # type: ignore[call-arg]  # its base class has the others
        vocab_size=VOCABULARY, d_model=size.hidden, d_kv=size.head_dim, d_ff=size.inner,
        num_layers=size.layers // 2, num_heads=size.heads, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=False,
        n_positions=POSITIONS,
    )  # fmt: skip


def _absolute_encoder_decoder(size: Size) -> Any:
    from transformers import BartConfig

    layers, inner = size.layers // 2, size.inner
    return BartConfig(  # type: ignore[call-arg]  # its base class has the others
        vocab_size=VOCABULARY, d_model=size.hidden, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=size.heads, decoder_attention_heads=size.heads,
        encoder_ffn_dim=inner, decoder_ffn_dim=inner, max_position_embeddings=POSITIONS,
        bos_token_id=None, eos_token_id=0, pad_token_id=0, decoder_start_token_id=0,
        forced_bos_token_id=None, forced_eos_token_id=None,
    )  # fmt: skip


KINDS: dict[str, Callable[[Size], Any]] = {
    "dense": _dense,
    "sinks and experts": _sinks,
    "gated delta hybrid": _gated_delta,
    "Mamba-2 hybrid": _mamba2,
    "ALiBi": _alibi,
    "latents": _latents,
    "encoder-decoder, relative": _encoder_decoder,
    "encoder-decoder, absolute": _absolute_encoder_decoder,
}


def model_folder(kind: str, size: str) -> Path:
    """Return the folder of a model, which is written if it is not there."""
    name = FOLDER.format(kind.replace(" ", "-").replace(",", ""), size)
    folder = Path(tempfile.gettempdir()) / name
    if not folder.is_dir():
        draft = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
        try:
            _write(draft, KINDS[kind](SIZES[size]))
            draft.replace(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _write(folder: Path, config: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto_class.from_config(config)
    with torch.no_grad():  # the end token is then never the most likely
        model.get_output_embeddings().weight[0].zero_()
    model.save_pretrained(folder)
    write_tokenizer(folder, POSITIONS)
