"""Compiling: a model's decoder layers by torch.compile, if somebody asks for it.

One layer at a time: all are alike, so a single compilation serves them all, and what is made is
found again in TORCHINDUCTOR_CACHE_DIR at the next start. Attention and its cache stay outside, as
what they do depends on the step's ints.
"""

import logging
import shutil
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from container.errors import ConfigError, one_line
from container.model import attention
from container.model.hf_config import text_config

log = logging.getLogger(__name__)

COMPILERS = ("c++", "g++", "clang++")


def compile_layers(module: PreTrainedModel, run: Callable[[], object]) -> None:
    """Compile the layers; `run` calls the model once. Raises ConfigError if that cannot be."""
    count = text_config(module.config).num_hidden_layers
    lists = [one for one in module.modules() if isinstance(one, nn.ModuleList)]
    layers = [layer for one in lists if len(one) == count for layer in one]
    if not layers:
        raise ConfigError(["COMPILE=1 cannot work here: no list of decoder layers was found"])
    if module.device.type == "cpu" and not any(map(shutil.which, COMPILERS)):
        raise ConfigError(["COMPILE=1 needs a C++ compiler on a CPU, and there is none"])
    outside = torch.compiler.disable(attention.paged_attention)
    ALL_ATTENTION_FUNCTIONS.register(attention.NAME, outside)
    log.info("compiling %d decoder layers; the first time takes minutes", len(layers))
    try:
        for layer in layers:
            layer.compile(dynamic=True)
        run()
    except Exception as error:  # of a compiler or of what it made
        raise ConfigError([f"COMPILE=1 cannot work here: {one_line(error)}"]) from error
