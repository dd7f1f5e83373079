"""The decoder of an encoder-decoder model over the rows of a step.

All rows lie side by side, as those of other paged models. The encoder's outputs for new prompts are
one row after another; the model's own layers compute keys and values from them, which the attention
function stores in the cache.
"""

import contextlib
import inspect
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from container.model.attention.metadata import AttentionMetadata
from container.model.encoder_decoder.position_table import PositionTable
from container.model.encoder_decoder.step_cache import StepCache, blank_layers
from container.model.kv_cache.cache import LayerShape

POSITIONS = "decoder_position_ids"


def decoder_start(model: PreTrainedModel) -> list[int]:
    """Return the ids that an encoder-decoder's decoder starts with."""
    for settings in (model.generation_config, model.config):
        start = getattr(settings, "decoder_start_token_id", None)
        start = start if start is not None else getattr(settings, "bos_token_id", None)
        if start is not None:
            forced = getattr(settings, "forced_bos_token_id", None)
            return [start] if forced is None else [start, forced]
    return [0]


def takes_positions(module: PreTrainedModel) -> bool:
    """Whether a model takes the positions of its decoder's tokens."""
    return POSITIONS in inspect.signature(module.forward).parameters


def call_decoder(
    module: PreTrainedModel,
    ids: torch.Tensor,
    positions: torch.Tensor,
    encoded: torch.Tensor,
    cache: StepCache,
    **options: Any,
) -> torch.Tensor:
    """Run the decoder on ids, [rows], beside an encoder's outputs, [tokens, width].

    Returns the logits, [rows, vocabulary].
    """
    if takes_positions(module):
        options[POSITIONS] = positions[None]
    output = module(
        decoder_input_ids=ids[None],
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded[None]),
        past_key_values=cache,
        use_cache=False,
        **options,
    )
    logits: torch.Tensor = output.logits[0]
    return logits


class PagedDecoder:
    """Runs the decoder on a step's rows; `shapes` are those of its layers' keys and values.

    `width` is that of the encoder's outputs.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        shapes: list[LayerShape],
        width: int,
        table: PositionTable | None = None,
    ) -> None:
        self.module = module
        self.shapes = shapes
        self.start = tuple(decoder_start(module))
        self._table = table
        self._blank = blank_layers(shapes, module.dtype, module.device)
        self._nothing = torch.zeros(1, width, dtype=module.dtype, device=module.device)

    def run(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        step: AttentionMetadata,
        encoded: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the logits of all rows, [rows, vocabulary].

        `encoded` are the encoder's outputs for the prompts that begin in this step, in the order
        of their slots, [tokens, width].
        """
        cache = StepCache(blank=self._blank if encoded is None else None)
        table = self._table
        with table.at(positions) if table is not None else contextlib.nullcontext():
            return call_decoder(
                self.module,
                ids,
                positions,
                self._nothing if encoded is None else encoded,
                cache,
                step=step,
            )


@torch.inference_mode()
def encode(module: PreTrainedModel, prompt_ids: list[int]) -> torch.Tensor:
    """Run the encoder on a whole prompt; return its outputs, [tokens, width]."""
    encoder: Any = module.get_encoder()
    ids = torch.tensor([prompt_ids], device=module.device)
    output = encoder(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True)
    states: torch.Tensor = output.last_hidden_state[0]
    return states
