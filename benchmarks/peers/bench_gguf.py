"""Writes a folder with a Llama in bfloat16 as GGUF, for llama.cpp; run with that peer's own Python.

bench_gguf.py MODEL FILE TYPE, TYPE being BF16 or Q8_0. Biases, rotary scaling and other
architectures are refused. Norms stay float32, as llama.cpp's own converter keeps them. There is
no vocabulary in the file: the peer gets ids.
"""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OTHER_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def read_bfloat16(file: Path) -> dict[str, Array]:
    """Read a safetensors file of bfloat16 tensors as float32, which numpy has."""
    content = np.memmap(file, np.uint8, "r")
    length = int(content[:8].view(np.uint64)[0])
    header = json.loads(content[8 : 8 + length].tobytes())
    tensors = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        assert about["dtype"] == "BF16", name
        start, end = (8 + length + offset for offset in about["data_offsets"])
        halves = content[start:end].view(np.uint16).astype(np.uint32) << 16
        tensors[name] = halves.view(np.float32).reshape(about["shape"])
    return tensors


def read_weights(model: Path) -> dict[str, Array]:
    """Read all weights of a folder, of one file or of several."""
    return {
        name: tensor
        for file in sorted(model.glob("*.safetensors"))
        for name, tensor in read_bfloat16(file).items()
    }


def read_config(model: Path) -> dict[str, Any]:
    """Read the configuration. Raises ValueError if it is none of a plain Llama."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    kind = rope.get("rope_type", scaling.get("rope_type", scaling.get("type", "default")))
    has_bias = config.get("attention_bias") or config.get("mlp_bias")
    if config["model_type"] != "llama" or kind != "default" or has_bias:
        raise ValueError(f"{model} is no plain Llama: llama.cpp's own converter is needed")
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    config["head_dim"] = config.get("head_dim") or head_dim
    config["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    return config


def gguf_name(name: str) -> str:
    """What llama.cpp calls a tensor of transformers' Llama."""
    parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"
    return f"{OTHER_NAMES[parts[0]]}.weight"


def interleave(weight: Array, heads: int) -> Array:
    """Order rows of q or k as llama.cpp rotates them: pairs side by side, not in two halves."""
    rows = weight.reshape(heads, 2, -1, weight.shape[-1])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def write(model: Path, file: Path, kind: gguf.GGMLQuantizationType) -> None:
    """Write the whole model, or nothing."""
    config = read_config(model)
    draft = file.with_suffix(".draft")
    writer = gguf.GGUFWriter(draft, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for name, tensor in read_weights(model).items():
        for part, count in heads.items():
            if f".{part}." in name:
                tensor = interleave(tensor, config[count])
        if tensor.ndim == 1:
            writer.add_tensor(gguf_name(name), tensor)
        else:
            quantized = gguf.quants.quantize(tensor, kind)
            writer.add_tensor(gguf_name(name), quantized, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    draft.replace(file)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), gguf.GGMLQuantizationType[sys.argv[3]])
