"""Vision-language models: the model's own forward pass merges images and text.

The model's own `prepare_inputs_for_generation` creates the inputs of each step, as in `generate`:
image embeddings, three-dimensional positions and masks differ between families, and this module
depends on none of them.
"""

import functools
import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from container.engine.schedule import ScheduledSequence
from container.engine.sequence import Sequence
from container.messages.engine import SamplingParams
from container.messages.images import ImageTensors
from container.model.execution.hf_cache_runner import HFCacheRunner, Progress
from container.model.fallbacks import Fallbacks
from container.model.reference_check import Reference
from container.model.vision.language_model import tensors_of

PIXELS = "pixel_values"


class VisionRunner(HFCacheRunner):
    """Implements the engine's ModelRunner for prompts with and without images."""

    @functools.cached_property
    def _in_chunks(self) -> bool:
        """False: all images of a prompt are processed together with all of its ids."""
        return False

    def _read_on(self, progress: Progress, item: ScheduledSequence, num_rows: int) -> torch.Tensor:
        """Run the ids that are not computed yet; return the last `num_rows` rows of logits."""
        sequence, start = item.sequence, progress.num_computed
        ids = self._tensor(sequence.token_ids[: item.end])
        if start == 0:
            progress.model_kwargs = self._begin(sequence, ids)
        options = {"logits_to_keep": num_rows} if self._supports_logits_to_keep else {}
        inputs = self._model.prepare_inputs_for_generation(
            ids,
            next_sequence_length=item.end - start if start else None,
            is_first_iteration=start == 0,
            **progress.model_kwargs,
            **options,
        )
        output = self._model(**inputs, return_dict=True)
        model_kwargs = self._model._update_model_kwargs_for_generation(
            output, progress.model_kwargs
        )
        progress.model_kwargs = {
            name: model_kwargs[name] for name in model_kwargs if PIXELS not in name
        }
        progress.num_computed = item.end
        logits: torch.Tensor = output.logits[0, -num_rows:]
        return logits.float()

    def _begin(self, sequence: Sequence, ids: torch.Tensor) -> dict[str, Any]:
        """Create the inputs that `generate` starts with.

        After a preemption, `ids` include the completion.
        """
        model_kwargs: dict[str, Any] = {"use_cache": True}
        model_kwargs |= tensors_of(sequence.images, ids.shape[1], self._model.dtype, self._device)
        if "position_ids" in inspect.signature(self._model.forward).parameters:
            model_kwargs["position_ids"] = self._model._prepare_position_ids_for_generation(
                ids, model_kwargs
            )
        return model_kwargs


@torch.inference_mode()
def check_images(
    model: PreTrainedModel,
    prompt_ids: list[int],
    ids: list[int],
    images: ImageTensors,
    device: torch.device,
    fallbacks: Fallbacks,
) -> None:
    """Compare a prompt with images, decoded step by step, with a single pass. Raises Mismatch.

    `ids` follow the prompt, one per step.
    """
    ids = prompt_ids + ids

    def run() -> torch.Tensor:
        inputs = tensors_of(images, len(ids), model.dtype, device)
        output = model(input_ids=torch.tensor([ids], device=device), **inputs, use_cache=False)
        rows: torch.Tensor = output.logits[0, len(prompt_ids) - 1 :]
        return rows.clone()

    sequence = Sequence(0, prompt_ids, SamplingParams(max_new_tokens=len(ids)), images=images)
    sequence.token_ids = ids
    runner, ends = VisionRunner(model, device), range(len(prompt_ids), len(ids) + 1)
    rows = [runner.advance(ScheduledSequence.of(sequence, end))[0][-1] for end in ends]
    reference = Reference(model, run, model.dtype, fallbacks)
    reference.check(torch.stack(rows), "a prompt with an image")
