"""Compiles decoder layers with torch.compile."""

import logging
import shutil
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from container.errors import ConfigError, one_line
from container.model.attention import paged
from container.model.hf_config import text_config

log = logging.getLogger(__name__)

COMPILERS = ("c++", "g++", "clang++")


def compile_layers(module: PreTrainedModel, run: Callable[[], object]) -> None:
    """Compile the layers; `run` calls the model once. Raises ConfigError if that fails."""
    count = text_config(module.config).num_hidden_layers
    lists = [
        module_list for module_list in module.modules() if isinstance(module_list, nn.ModuleList)
    ]
    layers = [layer for module_list in lists if len(module_list) == count for layer in module_list]
    if not layers:
        raise ConfigError(["COMPILE=1 cannot work here: no list of decoder layers was found"])
    if module.device.type == "cpu" and not any(map(shutil.which, COMPILERS)):
        raise ConfigError(["COMPILE=1 needs a C++ compiler on a CPU, and there is none"])
    outside = torch.compiler.disable(paged.paged_attention)
    ALL_ATTENTION_FUNCTIONS.register(paged.NAME, outside)
    log.info("compiling %d decoder layers; the first time takes minutes", len(layers))
    try:
        for layer in layers:
            layer.compile(dynamic=True)
        run()
    except Exception as error:  # from the compiler or the compiled code
        raise ConfigError([f"COMPILE=1 cannot work here: {one_line(error)}"]) from error
