"""Memory: how much a step needs, and what the start tells a person of where it all goes."""

from dataclasses import dataclass

import torch

from container.engine.adapters import BASE
from container.messages import SamplingParams
from container.model.device_sampling import choose
from container.model.forward_plan import ChunkPlan, ForwardPlan
from container.model.kv_cache import BLOCK_SIZE
from container.model.preparing import LoadedModel, make_forward

GIB = 2**30
# What drivers, libraries and fragments take of a GPU beside the tensors.
GPU_MARGIN = 512 * 2**20
LONG_SEQUENCE = 4096


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of one rank; `activations` is what the largest step needs, None where not measured.

    `recordings` are CUDA graphs' own.
    """

    weights: int
    activations: int | None
    recordings: int
    cache: int
    tokens: int

    def lines(self) -> list[str]:
        """A table for the log."""
        rows = [("weights", self.weights, "")]
        if self.activations is not None:
            rows.append(("activations", self.activations, "the largest step, measured"))
        if self.recordings:
            rows.append(("CUDA graphs", self.recordings, ""))
        fits = f"{self.tokens:,} tokens, or {self.tokens // LONG_SEQUENCE:,} sequences of "
        rows.append(("KV cache", self.cache, f"{fits}{LONG_SEQUENCE:,}"))
        return [f"{name:<12} {size / GIB:>8.2f} GiB  {note}".rstrip() for name, size, note in rows]


def measure_activations(
    model: LoadedModel, num_tokens: int, num_rows: int, num_sequences: int, context: int
) -> int | None:
    """Bytes that a step of so many prompt tokens and rows of logits takes for a while.

    So many sequences sample. None on a CPU, where torch does not count. With several ranks all of
    them must call it.
    """
    if model.device.type != "cuda" or model.layers is None:
        return None
    size = BLOCK_SIZE["cuda"]
    forward = make_forward(model, num_blocks=-(-num_tokens // size), block_size=size)
    torch.cuda.synchronize(model.device)
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    with torch.inference_mode():
        logits = forward.run(largest_step(num_tokens, num_rows, block_size=size, context=context))
        params = [SamplingParams(1, temperature=1.0, top_p=0.9)] * min(num_sequences, num_rows)
        choose(logits[: len(params)], params, [0.5] * len(params))
    del logits
    torch.cuda.synchronize(model.device)
    peak = torch.cuda.max_memory_allocated(model.device) - before
    del forward
    torch.cuda.empty_cache()
    return peak


def largest_step(num_tokens: int, num_rows: int, *, block_size: int, context: int) -> ForwardPlan:
    """One prompt of so many tokens, with logits of the last rows.

    Positions begin anew where the model has no more.
    """
    ids = list(range(num_tokens))
    blocks = list(range(-(-num_tokens // block_size)))
    return ForwardPlan(
        token_ids=[0] * num_tokens,
        positions=[place % context for place in ids],
        slots=ids,
        logit_rows=ids[-num_rows:],
        groups=[],
        chunks=[ChunkPlan(0, num_tokens, num_tokens, blocks)],
        num_decodes=0,
        adapters=[(BASE, num_tokens)],
    )
