"""Loads a checkpoint of any format into a module with plain layers of one dtype."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
)

from container.errors import ModelLoadError, one_line
from container.model.formats.checkpoint import has_few_bits, load_few_bits
from container.model.loading.checkpoint import loadable
from container.model.loading.quantization import cast_parameters, is_dequantized
from container.model.parallel.tensor_parallel import is_tensor_parallel, make_plain
from container.settings.process_env import RANKS_FOLDER

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CheckpointLoader:
    """Loads a model again whenever a refused conversion has left it changed.

    `options` go to `from_pretrained`. A checkpoint of few bits keeps these on a CPU, and with
    `dequantizes` becomes one of `dtype`.
    """

    path: Path
    config: PretrainedConfig
    dtype: torch.dtype
    device: torch.device
    reads_images: bool
    trust_remote_code: bool
    options: dict[str, Any]
    dequantizes: bool

    def load(self) -> PreTrainedModel:
        """Load the model, without dropout. Raises ModelLoadError."""
        try:
            module = self._load_few_bits() if self._has_few_bits else self._load_plain()
        except ModelLoadError:
            raise
        except Exception as error:  # a broken checkpoint fails anywhere in transformers
            reason = f"{self.path}: the model cannot be loaded: {one_line(error)}"
            raise ModelLoadError(reason) from error
        if is_dequantized(self.config, self.device):
            cast_parameters(module, self.dtype)
        if is_tensor_parallel(module):
            make_plain(module)
        return module.eval()

    @property
    def _has_few_bits(self) -> bool:
        on_cpu = self.device.type == "cpu"
        return self.dequantizes or (on_cpu and has_few_bits(self.path, self.config))

    @property
    def _auto_class(self) -> Any:
        if self.reads_images:
            return AutoModelForImageTextToText
        return AutoModelForSeq2SeqLM if self.config.is_encoder_decoder else AutoModelForCausalLM

    def _load_few_bits(self) -> PreTrainedModel:
        module = load_few_bits(
            self.path, self.config, self.dtype, self._auto_class,
            trust_remote_code=self.trust_remote_code, dequantizes=self.dequantizes,
        )  # fmt: skip
        return module.to(self.device)  # type: ignore[arg-type]  # transformers types it for its decorator

    def _load_plain(self) -> PreTrainedModel:
        loaded: tuple[PreTrainedModel, dict[str, Any]] = self._auto_class.from_pretrained(
            loadable(self.path, os.environ.get(RANKS_FOLDER)),
            output_loading_info=True,
            config=self.config,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            attn_implementation="eager",  # the reference that paged attention is checked against
            **self.options,
        )
        module, loading_info = loaded
        self._compare_tensors(loading_info)
        if not self.options:  # a quantized or distributed one is already placed
            module.to(self.device)  # type: ignore[arg-type]  # transformers types it for its own decorator
        return module

    def _compare_tensors(self, loading_info: dict[str, Any]) -> None:
        """Raise ModelLoadError for tensors that the weights lack; warn of those of no use."""
        missing = sorted(loading_info["missing_keys"])
        if missing:
            raise ModelLoadError(
                f"{self.path}: the weights lack {len(missing)} tensors that config.json calls for, "
                f"such as {missing[0]}; the files are those of another model, or some are missing"
            )
        if unused := sorted(loading_info["unexpected_keys"]):
            log.warning(
                "%s: %d tensors of the weights have no place in the model that config.json "
                "describes and are not used, such as %s; if answers are wrong, compare config.json "
                "(its number of layers, say) with the weights",
                self.path, len(unused), ", ".join(unused[:3]),
            )  # fmt: skip
