"""Converts the decoder of an encoder-decoder model to paged attention, and checks its results.

The decoder is probed and run like any other model. The encoder stays unchanged; other threads run
it.
"""

import contextlib
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from container.engine.blocks.encoder_prompt import lay_out
from container.engine.schedule import ScheduledSequence
from container.engine.sequence import Sequence
from container.errors import one_line as describe
from container.messages.engine import SamplingParams
from container.model.attention.traced import NotTraceable
from container.model.checks.layer_probe import NotPageable
from container.model.encoder_decoder.decoder import PagedDecoder, decoder_start, encode
from container.model.execution.forward_pass import ForwardPass
from container.model.fallbacks import Fallbacks
from container.model.forward_batch import make_plan
from container.model.kernels.cpu import Kernels
from container.model.kv_cache.cache import KVCache, fill_stale
from container.model.layers.cpu_linear import LinearFactory
from container.model.loaded_model import uses_device_map
from container.model.optimize.packing import keep_read_weights, pack
from container.model.paged_decoder.probe import DecoderProbe
from container.model.reference_check import Mismatch, Reference

# Of the ids of a check, the number that the decoder gets.
NUM_DECODED = 6
# Small blocks are the harder test.
BLOCK_SIZE = 4


@torch.inference_mode()
def convert_decoder(
    module: PreTrainedModel,
    ids: list[int],
    device: torch.device,
    context: int,
    fallbacks: Fallbacks,
    cpu_kernels: Kernels | None = None,
) -> PagedDecoder:
    """Convert a model's decoder to paged attention, and check it on prompts of `ids`.

    `context` is the number of positions that it will see at most; `fallbacks` collects what is
    slower than possible. Raises NotPageable and leaves the
    model unchanged, or Mismatch if the served form is less accurate than the model's own.
    """
    if uses_device_map(module):
        raise NotPageable("it has an encoder, and its layers are on several devices")
    undo = contextlib.ExitStack()
    try:
        trial = _DecoderTrial(module, ids, device, fallbacks)
        decoder = DecoderProbe(module, ids, context).convert(undo)
        trial.check(decoder)
    except Exception as error:  # a model that does not suit can fail anywhere
        undo.close()
        is_expected = isinstance(error, NotPageable | NotTraceable | Mismatch)
        raise NotPageable(str(error) if is_expected else describe(error)) from error
    linears = LinearFactory(cpu_kernels)
    if module.device.type == "cpu" and linears.packs(module.dtype):
        keep_read_weights(module, lambda: trial.check(decoder))
        pack(module, linears.linear, linears.head, kernels=cpu_kernels)
        trial.check(decoder)
    return decoder


class _DecoderTrial:
    """Compares a paged decoder with the model's own pass, on two prompts of different lengths."""

    def __init__(
        self, module: PreTrainedModel, ids: list[int], device: torch.device, fallbacks: Fallbacks
    ) -> None:
        self._module = module
        self._device = device
        self._prompts = [ids, ids[: len(ids) // 2]]
        self._start = tuple(decoder_start(module))
        self._decoded = ids[-NUM_DECODED:]
        self._reference = Reference(module, self._run_own, module.dtype, fallbacks)

    def check(self, decoder: PagedDecoder) -> None:
        """Run the decoder step by step on both prompts. Raises Mismatch."""
        rows: list[list[torch.Tensor]] = [[], []]
        for which, row in self._steps(decoder):
            rows[which].append(row)
        served = torch.stack([row for part in rows for row in part])
        self._reference.check(served, "the paged decoder")

    def _run_own(self) -> torch.Tensor:
        rows = []
        for prompt in self._prompts:
            ids = torch.tensor([prompt], device=self._device)
            output = self._module(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                decoder_input_ids=torch.tensor(
                    [[*self._start, *self._decoded]], device=self._device
                ),
                use_cache=True,
            )
            rows.append(output.logits[0, len(self._start) - 1 :].clone())
        return torch.cat(rows)

    def _steps(self, decoder: PagedDecoder) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the number of a prompt and the logits of its next token.

        The second sequence begins beside a decode of the first one.
        """
        sequences = [self._sequence(which, prompt) for which, prompt in enumerate(self._prompts)]
        num_blocks = 2 * max(len(sequence.block_table) for sequence in sequences)
        cache = KVCache(
            decoder.shapes, num_blocks=num_blocks, block_size=BLOCK_SIZE,
            dtype=self._module.dtype, device=self._device,
        )  # fmt: skip
        for tensor in (*cache.keys, *cache.values):
            fill_stale(tensor)
        forward = ForwardPass(self._module, cache, self._device, decoder=decoder)
        while any(sequence.num_to_compute for sequence in sequences):
            begun = [s for s in sequences[:1] if s.num_computed == s.encoder.end] or sequences
            items = [self._next(sequence) for sequence in begun if sequence.num_to_compute]
            plan = make_plan(
                items, items, [], block_size=BLOCK_SIZE, scratch_block=cache.scratch_block
            )
            logits = forward.run(plan, encoded=self._encoded(items))
            for item, row in zip(items, logits, strict=True):
                item.sequence.num_computed += item.num_tokens
                yield sequences.index(item.sequence), row.clone()

    def _next(self, sequence: Sequence) -> ScheduledSequence:
        count = max(1, sequence.prompt_len - sequence.num_computed)
        return ScheduledSequence.of(sequence, count)

    def _encoded(self, items: list[ScheduledSequence]) -> torch.Tensor | None:
        parts = [
            encode(self._module, item.sequence.token_ids[: item.sequence.encoder.length])
            for item in items
            if item.writes_encoded
        ]
        return torch.cat(parts) if parts else None

    def _sequence(self, which: int, prompt: list[int]) -> Sequence:
        """Create a sequence with its blocks, which alternate with those of the other one."""
        ids, encoder = lay_out(prompt, self._start, BLOCK_SIZE)
        params = SamplingParams(max_new_tokens=len(self._decoded))
        sequence = Sequence(which, ids, params, encoder=encoder)
        sequence.token_ids = [*ids, *self._decoded]
        sequence.num_computed = encoder.begin(0)
        count = -(-len(sequence.token_ids) // BLOCK_SIZE)
        sequence.block_table = list(range(which, which + 2 * count, 2))
        return sequence
