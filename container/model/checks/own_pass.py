"""A model's own pass over a prompt: at once, or a prompt and then token by token, as `generate`.

A recurrent model may compute the two differently. Then the second is the one to compare with.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from container.model.checks.schedule import CheckPrompt
from container.model.vision.language_model import (
    generated_positions,
    shift_of,
    tensors_of,
)

# Names of the cache among a model's arguments and outputs.
CACHE_NAMES = ("past_key_values", "cache_params")


class OwnPass:
    """Runs a model on a prompt with its own cache; the last run's cache is in `cache`.

    The first `prompt_len` ids are computed at once, the rest one by one; None: all at once.
    """

    def __init__(
        self, module: PreTrainedModel, prompt: CheckPrompt, prompt_len: int | None
    ) -> None:
        self.cache: Any = None
        self.logits = torch.empty(0)
        self._module = module
        self._ids = torch.tensor([prompt.ids], device=module.device)
        self._images = prompt.images
        self._shift = 0
        self._prompt_len = len(prompt.ids) if prompt_len is None else prompt_len
        parameters = inspect.signature(module.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._cache_name = next((name for name in CACHE_NAMES if name in parameters), None)

    def run(self) -> Iterator[torch.Tensor]:
        """Yield each step's positions, [tokens], before it runs; collect the logits of all."""
        self.cache, logits = None, []
        count = self._ids.shape[1]
        steps = [(0, self._prompt_len), *((i, i + 1) for i in range(self._prompt_len, count))]
        for start, stop in steps:
            positions = torch.arange(start, stop)
            yield positions
            output = self._module(
                input_ids=self._ids[:, start:stop], use_cache=True, **self._options(positions)
            )
            self.cache = next((output[name] for name in CACHE_NAMES if name in output), None)
            logits.append(output.logits[0].float())
        self.logits = torch.cat(logits)

    def _options(self, positions: torch.Tensor) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self._images and self.cache is None:
            options |= self._image_options(len(positions))
        elif self._takes_positions:
            options["position_ids"] = (positions + self._shift)[None].to(self._ids.device)
        if self.cache is not None and self._cache_name is not None:
            options[self._cache_name] = self.cache
        return options

    def _image_options(self, num_ids: int) -> dict[str, Any]:
        """Return the images, and the positions of ids with images as `generate` makes them."""
        module, ids = self._module, self._ids[:, :num_ids]
        options: dict[str, Any] = tensors_of(self._images, num_ids, module.dtype, module.device)
        if self._takes_positions:
            positions = generated_positions(module, ids, dict(options))
            options["position_ids"], self._shift = positions, shift_of(positions)
        return options
