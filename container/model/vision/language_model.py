"""The language model inside of a vision-language model, and its inputs for prompts with images.

Families differ in how they merge images and text, in their positions, and in what else they pass
on. The model's own forward pass does all of this: it runs on a prompt with its images as far as the
call of its language model, whose arguments are then read. Steps of a batch put the rows
that they compute in the place of those for ids alone.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from container.messages.images import ImageTensors, Tensor
from container.model.hf_config import text_config
from container.model.vision.prompt_inputs import POSITIONS, PromptInputs, StepInputs

# The input with the type of each prompt token; text is 0.
TOKEN_TYPES = "token_type_ids"

Span = tuple[int, int]  # the first token and the one after the last


class _Called(Exception):
    """The language model was called with these arguments."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments


class LanguageModel:
    """The language model of a vision-language model. Threads may read prompts during steps."""

    def __init__(self, module: PreTrainedModel) -> None:
        self.module = module
        self.inner: PreTrainedModel = module.get_decoder()
        self._thread = threading.local()
        self._hook = self.inner.register_forward_pre_hook(self._on_call, with_kwargs=True)

    def detach(self) -> None:
        """Restore the model."""
        self._hook.remove()

    @torch.inference_mode()
    def read_prompt(self, ids: list[int], images: ImageTensors) -> PromptInputs:
        """Run the image encoder, and return the inputs for a prompt's tokens.

        Raises UnknownInput, or any error of the model.
        """
        arguments, positions = self.arguments_of(ids, images)
        return PromptInputs.of(arguments, as_axes(positions))

    @torch.inference_mode()
    def arguments_of(
        self, ids: list[int], images: ImageTensors
    ) -> tuple[dict[str, Any], torch.Tensor]:
        """Return the arguments of the language model for a prompt, and the prompt's positions."""
        tensors = self._tensors(ids, images)
        input_ids = self._ids(ids)
        positions = generated_positions(self.module, input_ids, tensors)
        return self._called_with(input_ids, positions, tensors), positions

    @torch.inference_mode()
    def positions(self, ids: list[int], images: ImageTensors) -> torch.Tensor:
        """Return a prompt's positions by the model's own function: [(axes,) 1, tokens]."""
        return generated_positions(self.module, self._ids(ids), self._tensors(ids, images))

    @contextlib.contextmanager
    def with_inputs(self, inputs: StepInputs | None) -> Iterator[None]:
        """Put parts of prompts in the place of their rows in this thread's calls."""
        self._thread.inputs = inputs
        try:
            yield
        finally:
            self._thread.inputs = None

    def _called_with(
        self, ids: torch.Tensor, positions: torch.Tensor, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        self._thread.is_reading = True
        try:
            self.module(input_ids=ids, use_cache=False, **{POSITIONS: positions}, **tensors)
        except _Called as called:
            return called.arguments
        finally:
            self._thread.is_reading = False
        raise RuntimeError("the model has not called its language model")

    def _on_call(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if getattr(self._thread, "is_reading", False):
            raise _Called(kwargs)
        inputs: StepInputs | None = getattr(self._thread, "inputs", None)
        return None if inputs is None else (args, inputs.merged_into(kwargs))

    def _ids(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self.module.device)

    def _tensors(self, ids: list[int], images: ImageTensors) -> dict[str, torch.Tensor]:
        return tensors_of(images, len(ids), self.module.dtype, self.module.device)


def language_modules(model: nn.Module) -> list[nn.Module]:
    """Return a model's modules, without those of an image encoder."""
    if not isinstance(model, PreTrainedModel) or text_config(model.config) is model.config:
        return list(model.modules())
    if model.config.is_encoder_decoder:
        return list(model.modules())
    return [*model.get_decoder().modules(), *model.children(), model]


def generated_positions(
    module: Any, ids: torch.Tensor, tensors: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Return the positions that `generate` gives a prompt: [(axes,) 1, tokens]."""
    positions: torch.Tensor = module._prepare_position_ids_for_generation(ids, tensors)
    return positions


def as_axes(positions: torch.Tensor) -> torch.Tensor:
    """Return positions [1, tokens] or [axes, 1, tokens] as [axes, tokens]."""
    return positions if positions.dim() == 2 else positions[:, 0]


def shift_of(positions: torch.Tensor) -> int:
    """Return what to add to a later token's index to get its position.

    Positions in a plane may come with an axis that counts tokens, for masks.
    """
    count = positions.shape[-1]
    axes = as_axes(positions)
    indexes = torch.arange(count, device=axes.device)
    others = [axis for axis in axes if not torch.equal(axis, indexes)]
    return int(max(axis.max() for axis in others)) + 1 - count if others else 0


def tensors_of(
    images: ImageTensors, num_ids: int, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """Convert images to the model's inputs; token types are padded as text up to `num_ids`."""
    tensors = {
        name: _tensor(image_tensor, dtype).to(device) for name, image_tensor in images.items()
    }
    for name, tensor in tensors.items():
        if name.endswith(TOKEN_TYPES):
            text = tensor.new_zeros(tensor.shape[0], num_ids - tensor.shape[1])
            tensors[name] = torch.cat([tensor, text], dim=1)
    return tensors


def _tensor(image_tensor: Tensor, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.frombuffer(
        bytearray(image_tensor.data), dtype=getattr(torch, image_tensor.dtype)
    )
    tensor = tensor.reshape(image_tensor.shape)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def typed_spans(images: ImageTensors) -> list[Span]:
    """Return the runs of a prompt's image tokens, by the types that the processor has for them."""
    for name, image_tensor in images.items():
        if name.endswith(TOKEN_TYPES):
            types = _tensor(image_tensor, torch.float32)[0].tolist()
            return runs([token_type != 0 for token_type in types])
    return []


def spans_ahead(mask: Any) -> list[Span]:
    """Return the runs of tokens that see the token after them, in the masks of one prompt.

    `mask` is [1, heads, tokens, tokens], boolean or to be added to scores; or a dictionary of them.
    """
    if isinstance(mask, dict):
        return max((spans_ahead(part) for part in mask.values()), key=list.__len__, default=[])
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        return []
    ahead = mask[0, 0].diagonal(1)
    sees = ahead if ahead.dtype == torch.bool else ahead == 0
    return [(start, stop + 1) for start, stop in runs(sees.tolist())]


def runs(flags: list[bool]) -> list[Span]:
    """Return the runs of true flags."""
    edges = [at for at, flag in enumerate([*flags, False]) if flag != (at > 0 and flags[at - 1])]
    return list(zip(edges[::2], edges[1::2], strict=True))
