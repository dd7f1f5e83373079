"""GGUF files: found, described as a model's folder, and read into a model.

transformers reads configuration, tokenizer and chat template from the file. They are written to a
folder, so that everything else reads them as any model's.
"""

import json
import logging
import re
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from container.errors import ModelLoadError, one_line
from container.model.formats.gguf_tensors import read_tensor
from container.model.formats.quantized_model import QUANTIZABLE
from container.model.layers.quantized_weight import QuantizedWeight

log = logging.getLogger(__name__)

SUFFIX = ".gguf"
SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
# Pre-tokenizers that transformers does not know: each digit on its own, then as GPT-2.
DIGITS_FIRST = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}
# Those of plain GPT-2, and of none.
PLAIN_SPLITS = {None, "default", "gpt-2", "gpt2"}
ROPE_FACTORS = "rope_freqs.weight"


def choose_files(path: Path) -> list[Path]:
    """Return a GGUF file, or the parts of a split one in order; `path` is one of them or a folder.

    Raises ModelLoadError where several files could be meant or a part is missing.
    """
    candidates = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    models: dict[str, list[Path]] = {}
    for file in candidates:
        split = SPLIT.fullmatch(file.name)
        models.setdefault(split[1] if split else file.name, []).append(file)
    if len(models) != 1:
        names = ", ".join(sorted(models)) or "none"
        raise ModelLoadError(
            f"{path} has {len(models)} GGUF models ({names}); set HF_MODEL_ID to the file of one"
        )
    [files] = models.values()
    split = SPLIT.fullmatch(files[0].name)
    if split is None:
        return files
    parts = [
        files[0].with_name(f"{split[1]}-{part:05d}-of-{split[3]}{SUFFIX}")
        for part in range(1, int(split[3]) + 1)
    ]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise ModelLoadError(f"{files[0].parent}: the part {missing[0]} of the model is missing")
    return parts


def write_folder(path: Path, links_in: str | None) -> Path:
    """Return a new folder below `links_in` with links to a GGUF model's files.

    It has config.json, tokenizer and generation_config.json of the GGUF file where the folder of
    the file has none. Raises ModelLoadError.
    """
    files = choose_files(path)
    folder = Path(tempfile.mkdtemp(prefix="gguf-", dir=links_in))
    for file in (path if path.is_dir() else path.parent).iterdir():
        is_text = file.suffix in (".json", ".jinja", ".txt", ".model", ".tiktoken")
        if (is_text and file.is_file() and ".index." not in file.name) or file in files:
            (folder / file.name).symlink_to(file.absolute())
    try:
        _write_text(folder, files)
    except ModelLoadError:
        raise
    except Exception as error:  # broken files fail anywhere in transformers and gguf
        raise ModelLoadError(f"{files[0]} cannot be read: {one_line(error)}") from error
    return folder


def _write_text(folder: Path, files: list[Path]) -> None:
    source = files[0].name
    if not (folder / "config.json").is_file():
        config = AutoConfig.from_pretrained(folder, gguf_file=source)
        has_head = any(tensor.name == "output.weight" for tensor in _tensors(files))
        fields = {name: _short(value) for name, value in config.to_dict().items()}
        fields["tie_word_embeddings"] = not has_head
        fields.pop("quantization_config", None)
        (folder / "config.json").write_text(json.dumps(fields, indent=1, default=str))
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    if not has_tokenizer:
        tokenizer = _tokenizer(files[0])
        _correct_split(tokenizer, files[0])
        tokenizer.save_pretrained(folder)
        if not (folder / "generation_config.json").is_file():
            GenerationConfig(
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
            ).save_pretrained(folder)


def _tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """Build the file's tokenizer as transformers does, without reading the configuration again."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        convert_gguf_tokenizer,
        get_gguf_tokenizer,
    )

    architecture, fields, options = get_gguf_tokenizer(str(file))
    fast, more = convert_gguf_tokenizer(architecture, fields)
    return PreTrainedTokenizerFast(tokenizer_object=fast, **options, **more)


def _short(value: object) -> object:
    """Write a number that the file has in float32 with float32's digits: 1e-05."""
    if isinstance(value, dict):
        return {name: _short(inner) for name, inner in value.items()}
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _correct_split(tokenizer: Any, file: Path) -> None:
    """Split text before merges as the file says, where transformers does not know how."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if _field(file, "tokenizer.ggml.model") != "gpt2":
        return
    name = _field(file, "tokenizer.ggml.pre")
    if name in DIGITS_FIRST:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        )
    elif name not in PLAIN_SPLITS and name not in GGUF_PRE_TOKENIZER_SPLITS:
        log.warning(
            "%s: its tokenizer splits text by the rules %r, which are not known; text is split as "
            "GPT-2 does, which may cost quality: put the model's tokenizer.json beside the file",
            file.name, name,
        )  # fmt: skip


@lru_cache(maxsize=4)
def _reader(file: Path) -> Any:
    """Read the file's fields and its table of tensors, which takes seconds."""
    from gguf import GGUFReader  # only where such a model is served

    return GGUFReader(file)


def _field(file: Path, name: str) -> Any:
    field = _reader(file).get_field(name)
    return None if field is None else field.contents()


def _tensors(files: list[Path]) -> Iterator[Any]:
    for file in files:
        yield from _reader(file).tensors


def read_weights(
    files: list[Path], model: PreTrainedModel, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a model's weights by its own names, one tensor in memory after the other.

    transformers knows the names, and how rows were permuted for the file. Raises ModelLoadError.
    """
    architecture = _field(files[0], "general.architecture")
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    names = get_gguf_hf_weights_map(model, processor)
    parsed: dict[str, dict[str, torch.Tensor]] = {"tensors": {}}
    for tensor in _tensors(files):
        if tensor.name == ROPE_FACTORS:
            _stretch(model, read_tensor(tensor, torch.float32))
            continue
        weight = read_tensor(tensor, dtype)
        if isinstance(weight, QuantizedWeight) and _is_quantizable(model, names.get(tensor.name)):
            order = _row_order(processor, tensor.name, len(weight))
            if order is not None:
                yield names[tensor.name], weight.rows(order)
                continue
        result = processor.process(
            weights=_floats(weight).numpy(), name=tensor.name, tensor_key_mapping=names,
            parsed_parameters=parsed,
        )  # fmt: skip
        if result.name is not None:
            name = names.get(result.name, result.name)
            yield name, torch.from_numpy(np.ascontiguousarray(result.weights))
    yield from parsed["tensors"].items()


def _floats(weight: torch.Tensor) -> torch.Tensor:
    if isinstance(weight, QuantizedWeight):
        return weight.dequantized(torch.float32)
    return weight.float()


def _is_quantizable(model: nn.Module, name: str | None) -> bool:
    """Whether a weight belongs to a module that computes with quantized ones."""
    parent = (name or "").rpartition(".")[0]
    return name is not None and type(model.get_submodule(parent)) in QUANTIZABLE


def _row_order(processor: TensorProcessor, name: str, outputs: int) -> torch.Tensor | None:
    """Return the file's row for each row of the model's weight; None if not only rows move."""
    index = np.arange(outputs, dtype=np.float64)[:, None]
    moved = processor.process(weights=index.copy(), name=name, parsed_parameters={"tensors": {}})
    if moved.name != name or moved.weights.shape != index.shape:
        return None
    if not np.array_equal(np.sort(moved.weights, 0), index):
        return None
    return torch.from_numpy(moved.weights[:, 0].astype(np.int64))


def _stretch(model: nn.Module, factors: torch.Tensor) -> None:
    """Divide the rotary embedding's frequencies, as Llama 3.1 and later do for long contexts."""
    for module in model.modules():
        for name in ("inv_freq", "original_inv_freq"):
            frequencies = getattr(module, name, None)
            if isinstance(frequencies, torch.Tensor) and frequencies.shape == factors.shape:
                frequencies.div_(factors)
