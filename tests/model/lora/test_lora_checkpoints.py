"""Checkpoints of LoRA adapters that cannot be right are refused, by the name of their file."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from container.errors import InvalidParameter
from container.model.lora.checkpoint import read_weights

CONFIG_CHANGES = {
    "no r": lambda config: config.pop("r"),
    "r: text": lambda config: config.update(r="4"),
    "r: 0": lambda config: config.update(r=0),
    "r: -1": lambda config: config.update(r=-1),
    "r: null": lambda config: config.update(r=None),
    "r: true": lambda config: config.update(r=True),
    "r: list": lambda config: config.update(r=[4]),
    "alpha: text": lambda config: config.update(lora_alpha="8"),
    "alpha: list": lambda config: config.update(lora_alpha=[]),
    "pattern: not a regex": lambda config: config.update(rank_pattern={"(": 1}),
    "pattern: list": lambda config: config.update(rank_pattern=[1]),
    "pattern: text": lambda config: config.update(rank_pattern="q_proj"),
    "pattern: rank 0": lambda config: config.update(rank_pattern={"q_proj": 0}),
    "pattern: rank text": lambda config: config.update(rank_pattern={"q_proj": "a"}),
    "pattern: exponential": lambda config: config.update(rank_pattern={"(a|a|[a-z._0-9])*$": 1}),
    "pattern: many repetitions": lambda config: config.update(alpha_pattern={".*.*.*.*x": 1}),
    "alpha pattern: text": lambda config: config.update(alpha_pattern={"q_proj": "a"}),
    "alpha pattern: not a regex": lambda config: config.update(alpha_pattern={"*": 1}),
    "peft_type: list": lambda config: config.update(peft_type=[]),
    "bias: list": lambda config: config.update(bias=["none"]),
}


@pytest.mark.parametrize("change", CONFIG_CHANGES.values(), ids=CONFIG_CHANGES.keys())
def test_a_config_that_cannot_be_right_is_refused_by_its_file(
    folders: dict[str, Path], tmp_path: Path, change: Callable[[dict[str, object]], object]
) -> None:
    shutil.copytree(folders["small"], tmp_path / "copy")
    path = tmp_path / "copy" / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(InvalidParameter, match=r"adapter_config\.json"):
        read_weights(path.parent, {}, torch.float32)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b'"LORA"', b"\xff\xfe", b"[" * 100_000, b" " * 2_000_000],
    ids=lambda text: repr(text[:8]),
)
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "adapter_config.json").write_bytes(text)
    with pytest.raises(InvalidParameter, match=r"adapter_config\.json"):
        read_weights(tmp_path, {}, torch.float32)


def test_a_config_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "adapter_config.json").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "adapter_config.json")
    for name in ("a", "b"):
        with pytest.raises(InvalidParameter, match="is missing"):
            read_weights(tmp_path / name, {}, torch.float32)


KEY = "base_model.model.layer"
EYE = torch.ones(2, 4)
TENSORS = {
    "one half": {f"{KEY}.lora_A.weight": EYE},
    "a vector": {f"{KEY}.lora_A.weight": EYE[0], f"{KEY}.lora_B.weight": EYE.T},
    "a number": {f"{KEY}.lora_A.weight": EYE[0, 0], f"{KEY}.lora_B.weight": EYE.T},
    "rank 0": {f"{KEY}.lora_A.weight": EYE[:0], f"{KEY}.lora_B.weight": EYE.T[:, :0]},
    "another shape": {f"{KEY}.lora_A.weight": EYE.T, f"{KEY}.lora_B.weight": EYE},
    "integers": {f"{KEY}.lora_A.weight": EYE.int(), f"{KEY}.lora_B.weight": EYE.T.int()},
    "NaN": {f"{KEY}.lora_A.weight": EYE * float("nan"), f"{KEY}.lora_B.weight": EYE.T},
    "infinite": {f"{KEY}.lora_A.weight": EYE, f"{KEY}.lora_B.weight": EYE.T * float("inf")},
    "too large for its format": {f"{KEY}.lora_A.weight": EYE, f"{KEY}.lora_B.weight": EYE.T * 1e6},
    "another layer": {"base_model.model.other.lora_A.weight": EYE},
    "no LoRA tensor": {f"{KEY}.weight": EYE},
}


@pytest.mark.parametrize("tensors", TENSORS.values(), ids=TENSORS.keys())
def test_weights_that_cannot_be_right_are_refused_by_their_file(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InvalidParameter, match=r"adapter_model\.safetensors"):
        read_weights(tmp_path, {"layer": (4, 4)}, torch.float16)


@pytest.mark.parametrize("kind", ["F8_E8M0", "F4"])
def test_weights_of_a_type_that_torch_does_not_read_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    size = 8 if kind == "F8_E8M0" else 4
    parts = {"A": ([2, 4], [0, size]), "B": ([4, 2], [size, 2 * size])}
    header = json.dumps(
        {
            f"{KEY}.lora_{half}.weight": {"dtype": kind, "shape": shape, "data_offsets": offsets}
            for half, (shape, offsets) in parts.items()
        }
    ).encode()
    whole = struct.pack("<Q", len(header)) + header + bytes(2 * size)
    (tmp_path / "adapter_model.safetensors").write_bytes(whole)
    with pytest.raises(InvalidParameter, match=r"adapter_model\.safetensors"):
        read_weights(tmp_path, {"layer": (4, 4)}, torch.float16)


def test_an_adapter_without_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    (tmp_path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(InvalidParameter, match="has no tensors"):
        read_weights(tmp_path, {"layer": (4, 4)}, torch.float32)


@pytest.mark.parametrize(("rank", "width"), [(3, 4), (10**7, 4), (10**7, 5)])
def test_weights_of_wrong_shapes_are_refused_unread(tmp_path: Path, rank: int, width: int) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    size = rank * 5 * 4
    header = json.dumps(
        {
            f"{KEY}.lora_A.weight": {
                "dtype": "F32", "shape": [rank, 5], "data_offsets": [0, size]
            },
            f"{KEY}.lora_B.weight": {
                "dtype": "F32", "shape": [5, rank], "data_offsets": [size, 2 * size]
            },
        }
    ).encode()  # fmt: skip
    with (tmp_path / "adapter_model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * size)  # without a block on the disk
    with pytest.raises(InvalidParameter, match="trained for another model"):
        read_weights(tmp_path, {"layer": (width, width)}, torch.float32)
