"""Small checkpoints in the layouts of AWQ, GPTQ and compressed-tensors, and what they mean."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

GROUP = 32
Packed = tuple[dict[str, torch.Tensor], torch.Tensor]  # tensors by suffix, and the weight


def packed_words(numbers: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """Pack numbers [rows, n] in words, int32 [rows, n * bits / 32], the first in the low bits."""
    shifts = torch.arange(0, 32, bits)
    words = (numbers.long().unflatten(1, (-1, 32 // bits)) << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _parts(weight: torch.Tensor, bits: int = 4) -> tuple[torch.Tensor, ...]:
    """Return numbers [out, in], zeros and float16 scales [out, groups]."""
    generator = torch.Generator().manual_seed(int(weight.numel()))
    top = 1 << bits
    grouped = weight.float().unflatten(1, (-1, GROUP))
    range_of = grouped.amax(-1) - grouped.amin(-1)
    scales = (range_of / (top - 1)).half()
    zeros = torch.randint(1, top // 2 + 2, scales.shape, generator=generator)
    numbers = (grouped / scales.float()[..., None] + zeros[..., None]).round().clamp(0, top - 1)
    return numbers.flatten(1), zeros, scales


def gptq(
    weight: torch.Tensor, *, version: int = 1, act_order: bool = False, bits: int = 4
) -> Packed:
    """GPTQ; with `act_order` the inputs' groups are those of another order of the inputs."""
    numbers, zeros, scales = _parts(weight, bits)
    generator = torch.Generator().manual_seed(weight.shape[1])
    group_of = torch.arange(weight.shape[1]) // GROUP
    if act_order:
        group_of = group_of[torch.randperm(len(group_of), generator=generator)]
    exact = (numbers - zeros[:, group_of]) * scales.float()[:, group_of]
    tensors = {
        "qweight": packed_words(numbers, bits).T.contiguous(),
        "qzeros": packed_words((zeros - int(version == 1)).T, bits).contiguous(),
        "scales": scales.T.contiguous(),
        "g_idx": group_of.int(),
    }
    return tensors, exact


def awq(weight: torch.Tensor) -> Packed:
    """AWQ's layout `gemm`, whose words interleave eight outputs."""
    numbers, zeros, scales = _parts(weight)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def packed(values: torch.Tensor) -> torch.Tensor:
        return packed_words(values.T.unflatten(1, (-1, 8))[..., order].flatten(1)).contiguous()

    exact = (numbers - zeros.repeat_interleave(GROUP, 1)) * scales.float().repeat_interleave(
        GROUP, 1
    )
    tensors = {"qweight": packed(numbers), "qzeros": packed(zeros), "scales": scales.T.contiguous()}
    return tensors, exact


def compressed(weight: torch.Tensor, *, symmetric: bool = False) -> Packed:
    """compressed-tensors' format `pack-quantized`."""
    numbers, zeros, scales = _parts(weight)
    if symmetric:
        zeros = torch.full_like(zeros, 8)
    exact = (numbers - zeros.repeat_interleave(GROUP, 1)) * scales.float().repeat_interleave(
        GROUP, 1
    )
    tensors = {
        "weight_packed": packed_words(numbers),
        "weight_scale": scales,
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        tensors["weight_zero_point"] = packed_words(zeros.T).T.contiguous()
    return tensors, exact


def save(
    model: PreTrainedModel,
    folder: Path,
    pack: Callable[[torch.Tensor], Packed],
    quantization: dict[str, Any],
) -> None:
    """Write a model with packed layers, and set its own weights to what they mean."""
    head = model.get_output_embeddings()
    model.save_pretrained(folder)
    tensors = {}
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and module is not head:
            parts, exact = pack(module.weight.detach())
            tensors |= {f"{name}.{suffix}": part for suffix, part in parts.items()}
            module.weight.data = exact.to(module.weight.dtype)
            if module.bias is not None:
                tensors[f"{name}.bias"] = module.bias.detach()
    packed_names = {name.rpartition(".")[0] for name in tensors}
    for name, tensor in model.state_dict().items():
        if name.rpartition(".")[0] not in packed_names:
            tensors[name] = tensor.clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
