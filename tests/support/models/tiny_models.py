"""Tiny random models of several architectures, and what `generate` says of them."""

import copy
import json
import shutil
from functools import cache
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BambaConfig,
    BartConfig,
    BlenderbotConfig,
    BlenderbotSmallConfig,
    BloomConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    FalconConfig,
    FalconH1Config,
    FlintConfig,
    Gemma3TextConfig,
    Glm4MoeLiteConfig,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteMoeHybridConfig,
    GraniteSWAConfig,
    JambaConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    M2M100Config,
    Mamba2Config,
    MambaConfig,
    MarianConfig,
    MBartConfig,
    MiMoV2FlashConfig,
    MistralConfig,
    MptConfig,
    MT5Config,
    MvpConfig,
    NemotronHConfig,
    PegasusConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    T5Config,
    T5GemmaConfig,
    UMT5Config,
)

VOCABULARY = 200
CONTEXT = 256
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
GROUPED = SIZES | {"num_key_value_heads": 2}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=16),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "mistral": MistralConfig(**GROUPED, sliding_window=10),
    "gemma3": Gemma3TextConfig(
        **GROUPED | {"num_hidden_layers": 3},
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **GROUPED | {"head_dim": 16},
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
    ),
    # attention sinks in every layer, and windows in some
    "gpt_oss": GptOssConfig(
        **GROUPED,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
}
# Attention that the model computes itself: with ALiBi, and with positions that are rotated.
CONFIGS["bloom"] = BloomConfig(
    vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1,
    pad_token_id=0,
)  # fmt: skip
# Chunks of positions that only its masks know, and queries that are scaled by their position.
CONFIGS["llama4"] = Llama4TextConfig(
    **GROUPED, head_dim=16, num_local_experts=2, num_experts_per_tok=1, intermediate_size_mlp=128,
    attention_chunk_size=16, moe_layers=[1], no_rope_layers=[1, 0], floor_scale=4, attn_scale=0.5,
)  # fmt: skip
LAYER_TYPES = ["sliding_attention", "full_attention"]
LATENTS = SIZES | {
    "num_key_value_heads": 4, "kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
}  # fmt: skip
# More models of a kind; for the theorem under some schedules.
FURTHER_CONFIGS: dict[str, PretrainedConfig] = {
    # latents: expanded to all heads' keys and values; queries with and without a rank
    "deepseek_v3": DeepseekV3Config(
        **LATENTS, q_lora_rank=32, v_head_dim=12, n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, first_k_dense_replace=1, n_group=1, topk_group=1,
        n_shared_experts=1,
    ),
    "deepseek_v2": DeepseekV2Config(
        **LATENTS, q_lora_rank=None, v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, first_k_dense_replace=1, n_shared_experts=1,
    ),
    "glm4_moe_lite": Glm4MoeLiteConfig(
        **LATENTS, q_lora_rank=32, v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, n_shared_experts=1, mlp_layer_types=["dense", "sparse"],
    ),
    # attention that the model computes itself, with other biases and positions
    "mpt": MptConfig(
        vocab_size=VOCABULARY, d_model=64, n_heads=4, n_layers=2, max_seq_len=CONTEXT, **ENDS
    ),
    "falcon": FalconConfig(**SIZES, new_decoder_architecture=True, num_kv_heads=2, alibi=False),
    "falcon_alibi": FalconConfig(**SIZES, multi_query=False, alibi=True),
    "gptj": GPTJConfig(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, rotary_dim=8, n_positions=CONTEXT,
        **ENDS,
    ),
    # sinks in layers of the Llama family
    "granite_swa": GraniteSWAConfig(**GROUPED, sliding_window=8, layer_types=LAYER_TYPES),
    # sinks beside keys that are wider than values, in windows only
    "mimo_v2_flash": MiMoV2FlashConfig(
        **GROUPED, head_dim=16, v_head_dim=8, sliding_window=8, layer_types=LAYER_TYPES,
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        mlp_layer_types=["dense", "sparse"],
    ),
    # sinks beside a mixture with a shared expert
    "flint": FlintConfig(
        **GROUPED, head_dim=16, sliding_window=8, layer_types=LAYER_TYPES, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32,
        mlp_only_layers=[0],
    ),
}  # fmt: skip
# As many KV heads as heads, and a vocabulary that four ranks cannot share equally.
WIDE_CONFIGS = {
    "llama_wide": LlamaConfig(**SIZES | {"vocab_size": 203}),
    # one matrix for q, k and v, whose outputs every rank gets
    "phi3": Phi3Config(**GROUPED | {"rope_scaling": None}),
}
# One layer of each kind, as torch.compile takes 20 s for a layer.
SHORT_CONFIGS: dict[str, PretrainedConfig] = {
    "llama_short": LlamaConfig(**GROUPED | {"num_hidden_layers": 1}),
    "gemma3_short": Gemma3TextConfig(
        **GROUPED,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
}
# The sizes of encoder-decoders with relative positions, and with absolute ones.
RELATIVE = {
    "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2,
    "num_heads": 4, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
ABSOLUTE = {
    "vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128, "max_position_embeddings": CONTEXT, "decoder_start_token_id": 1,
    "forced_bos_token_id": None, "forced_eos_token_id": None, **ENDS,
}  # fmt: skip
GEMMA_MODULE = GROUPED | {
    "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
# Encoder-decoders whose decoders are paged.
ENCODER_DECODER_CONFIGS: dict[str, PretrainedConfig] = {
    "t5": T5Config(**RELATIVE),
    "bart": BartConfig(**ABSOLUTE),
    "marian": MarianConfig(**ABSOLUTE),
}
FURTHER_ENCODER_DECODER_CONFIGS: dict[str, PretrainedConfig] = {
    "mt5": MT5Config(**RELATIVE),
    # a bias of its own in each layer
    "umt5": UMT5Config(**RELATIVE),
    # biases that differ beyond the length of a check
    "t5_far": T5Config(**RELATIVE, relative_attention_max_distance=200),
    "mbart": MBartConfig(**ABSOLUTE),
    "pegasus": PegasusConfig(**ABSOLUTE),
    # positions that count tokens other than padding
    "m2m_100": M2M100Config(**ABSOLUTE),
    "blenderbot": BlenderbotConfig(**ABSOLUTE),
    "blenderbot_small": BlenderbotSmallConfig(**ABSOLUTE),
    # rotated positions, windows, soft caps, KV heads that query heads share
    "t5gemma": T5GemmaConfig(
        encoder=GEMMA_MODULE, decoder=GEMMA_MODULE, vocab_size=VOCABULARY,
        tie_word_embeddings=False, **ENDS | {"decoder_start_token_id": 2},
    ),
}  # fmt: skip
# Models that are served through their own cache: an encoder-decoder that computes its attention.
OWN_CACHE_CONFIGS: dict[str, PretrainedConfig] = {"mvp": MvpConfig(**ABSOLUTE)}
# The gated delta rule's heads.
DELTA = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
MAMBA2 = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8,
    "mamba_expand": 2, "mamba_chunk_size": 16,
}  # fmt: skip
THREE = GROUPED | {"num_hidden_layers": 3}
# Models with convolution or recurrent states, in all layers, in some, or beside attention in one.
RECURRENT_CONFIGS: dict[str, PretrainedConfig] = {
    "qwen3_next": Qwen3NextConfig(
        **GROUPED, **DELTA, head_dim=16, num_experts=0, mlp_only_layers=[0, 1]
    ),
    "qwen3_5": Qwen3_5TextConfig(**GROUPED, **DELTA, head_dim=16),
    "bamba": BambaConfig(**THREE, **MAMBA2, attn_layer_indices=[1]),
    "granite_hybrid": GraniteMoeHybridConfig(
        **THREE, **MAMBA2, layer_types=["mamba", "attention", "mamba"], num_local_experts=0,
        num_experts_per_tok=0, shared_intermediate_size=64,
    ),
    "mamba2": Mamba2Config(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_heads=8, head_dim=16,
        state_size=8, n_groups=1, **ENDS,
    ),
    # mixers that continue a prompt only token by token, and read a linear layer's weight themselves
    "mamba": MambaConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, state_size=8,
        time_step_rank=8, **ENDS,
    ),
    "jamba": JambaConfig(
        **GROUPED, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, num_experts=2, num_experts_per_tok=1, mamba_d_state=8,
        mamba_dt_rank=8, use_mamba_kernels=False,
    ),
    "nemotron_h": NemotronHConfig(
        **{key: value for key, value in GROUPED.items() if key != "num_hidden_layers"},
        layers_block_type=["mamba", "mlp", "attention", "mamba"], mamba_num_heads=8,
        mamba_head_dim=16, n_groups=1, ssm_state_size=8, chunk_size=16, head_dim=16,
    ),
    "lfm2": Lfm2Config(**THREE, layer_types=["conv", "full_attention", "conv"]),
    "falcon_h1": FalconH1Config(
        **GROUPED | {"head_dim": 16}, mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8,
        mamba_n_groups=1, mamba_d_state=8, mamba_expand=1, mamba_chunk_size=16,
    ),
}  # fmt: skip
ALL_CONFIGS = (
    ENCODER_DECODER_CONFIGS
    | FURTHER_ENCODER_DECODER_CONFIGS
    | CONFIGS
    | FURTHER_CONFIGS
    | WIDE_CONFIGS
    | SHORT_CONFIGS
    | OWN_CACHE_CONFIGS
    | RECURRENT_CONFIGS
)
# Every family with a fast path, however it is paged.
SERVED_CONFIGS = {
    name: config
    for name, config in ALL_CONFIGS.items()
    if name not in OWN_CACHE_CONFIGS and name not in SHORT_CONFIGS
}


def make(
    name: str, dtype: torch.dtype = torch.float32, vocabulary: int = VOCABULARY
) -> PreTrainedModel:
    """The same weights at every call, large enough that logits are far apart."""
    generator = torch.Generator().manual_seed(7)
    config = copy.deepcopy(ALL_CONFIGS[name])  # a model changes its own
    if vocabulary != VOCABULARY:
        config.vocab_size = vocabulary
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    torch.manual_seed(7)  # some draw their vectors, which stay as they are
    model = kind.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    for name_, parameter in model.named_parameters():
        if name_.endswith(".sinks"):  # as large as a score
            parameter.data = torch.randn(parameter.shape, generator=generator) * 2
    return model.to(dtype)


@cache
def reference(name: str, prompt: tuple[int, ...], count: int) -> list[int]:
    """What transformers' own greedy `generate` adds to a prompt; no end token."""
    model = _reference_model(name)
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
    )
    return out[0, -count:].tolist()


def prompt_logprobs(name: str, prompt: list[int]) -> list[float]:
    """The log-probability of each prompt token but the first, from one plain forward pass."""
    with torch.inference_mode():
        logits = _reference_model(name)(torch.tensor([prompt])).logits[0].log_softmax(-1)
    return [logits[index, token].item() for index, token in enumerate(prompt[1:])]


def prompt_top_logprobs(name: str, prompt: list[int], count: int) -> list[list[float]]:
    """The largest log-probabilities at the places of the prompt's tokens but the first."""
    with torch.inference_mode():
        logits = _reference_model(name)(torch.tensor([prompt])).logits[0].log_softmax(-1)
    best: list[list[float]] = logits[:-1].topk(count, -1).values.tolist()
    return best


@cache
def _reference_model(name: str) -> PreTrainedModel:
    return make(name)


def save_endless(folder: Path, tokenizer_from: Path) -> None:
    """Write a model with a long context that never ends a completion by itself."""
    shutil.copytree(tokenizer_from, folder, ignore=shutil.ignore_patterns("*.safetensors", "g*"))
    vocabulary = json.loads((tokenizer_from / "config.json").read_text())["vocab_size"]
    sizes = GROUPED | {"vocab_size": vocabulary, "max_position_embeddings": 100_000}
    config = LlamaConfig(**sizes | {"eos_token_id": None})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    written = json.loads(settings.read_text())
    settings.write_text(json.dumps({**written, "eos_token": None}))
