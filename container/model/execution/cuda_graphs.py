"""Decode graphs: captures a step with one token of each sequence as one CUDA graph.

A decode of a small batch is hundreds of short kernels; launching them one by one takes the host
longer than running them takes the device. A graph is replayed as a whole, always with the same
tensors, so a step's numbers are copied into these first; unused rows are padding:

    numbers  [rows, 4 + blocks]   id | position | slot | context length | blocks ...
    sampled  [rows]               the last step's tokens, for ids that are placeholders
    logits   [rows, vocabulary]   float32
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from container.engine.adapters import NO_ADAPTER
from container.model.attention.metadata import AttentionMetadata, DecodeGroup
from container.model.attention.varlen import (
    AttentionKernels,
    DecodeMetadata,
    Kernel,
    VarlenMetadata,
)
from container.model.forward_batch import MIN_ROWS, ForwardPlan, GroupPlan
from container.model.kv_cache.cache import KVCache, fill_blocks
from container.model.reference_check import Mismatch, logits_error, row_error

ID, POSITION, SLOT, CONTEXT_LEN, BLOCKS = range(5)  # columns; blocks extend to the end
# The accepted distance of a replay's rows from the same step's without a graph: kernels that add
# with atomic operations have no fixed order.
SAME_KERNELS_TOLERANCE = 1e-3
# That of its logits from those of an eager step, in 16 bits and in float32.
LOGITS_TOLERANCE, EXACT_LOGITS_TOLERANCE = 0.1, 0.02
# Blocks of the longest context of a check.
CHECKED_BLOCKS = 5

# Runs a function and returns a function that replays it with the same tensors.
Capture = Callable[[Callable[[], None]], Callable[[], None]]
# Runs the model on ids and positions [rows] with a step's metadata; returns logits [rows,
# vocabulary].
RunModel = Callable[[torch.Tensor, torch.Tensor, AttentionMetadata], torch.Tensor]


def fill_placeholders(ids: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    """Replace placeholder ids, [rows], by the sampled tokens that they stand for."""
    return torch.where(ids < 0, sampled[(-1 - ids).clamp_(min=0)], ids)


def default_capture_sizes(max_running: int) -> list[int]:
    """Return the capture sizes: powers of two, and from 16 on also halfway between them."""
    sizes = {MIN_ROWS, max(MIN_ROWS, max_running)}
    size = MIN_ROWS
    while size < max_running:
        sizes |= {size, min(max_running, size + size // 2) if size >= 16 else size}
        size *= 2
    return sorted(sizes)


def graph_capturer() -> Capture:
    """Create a Capture for the current CUDA device; all graphs share one pool and stream."""
    return functools.partial(_capture_graph, torch.cuda.graph_pool_handle(), torch.cuda.Stream())


def _capture_graph(
    pool: Any, stream: torch.cuda.Stream, run: Callable[[], None]
) -> Callable[[], None]:
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        run()  # libraries choose their algorithms and allocate their workspaces now
        _refuse_waiting(run)
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # A capture that fails does not restore the current stream.
    with torch.cuda.stream(current), torch.cuda.graph(graph, pool=pool, stream=stream):
        run()
    replay: Callable[[], None] = graph.replay
    return replay


def _refuse_waiting(run: Callable[[], None]) -> None:
    """Run the function once more, and raise RuntimeError if it waits for the device.

    A capture would fail, too, but leave torch's allocator in capture mode for good.
    """
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture_nothing(run: Callable[[], None]) -> Callable[[], None]:
    """Implement Capture without CUDA: a replay runs the function again."""
    run()
    return run


class DecodeGraphs:
    """Owns the graphs of one forward pass and the tensors that they read and write."""

    def __init__(
        self,
        run_model: RunModel,
        cache: KVCache,
        *,
        sizes: Iterable[int],
        max_blocks: int,
        vocabulary: int,
        device: torch.device,
        kernels: AttentionKernels,
    ) -> None:
        """Allocate the graphs' tensors.

        `sizes` are numbers of rows; `max_blocks` is the number of blocks of the longest sequence;
        `kernels` compute attention.
        """
        self._run_model = run_model
        self._cache = cache
        self._sizes = sorted(set(sizes))
        self._kernels = kernels
        self._replays: dict[int, Callable[[], None]] = {}
        rows = self._sizes[-1]
        self._numbers = torch.zeros(rows, BLOCKS + max_blocks, dtype=torch.int32, device=device)
        self._sampled = torch.zeros(rows, dtype=torch.int64, device=device)
        self._logits = torch.zeros(rows, vocabulary, dtype=torch.float32, device=device)

    def capture(self, capture: Capture, progress: Callable[[str], None]) -> None:
        """Capture all sizes, the largest first, so that the smaller ones reuse its memory."""
        for index, size in enumerate(reversed(self._sizes), 1):
            progress(f"capturing CUDA graphs ({index} of {len(self._sizes)}: {size} sequences)")
            self._numbers.copy_(_padding(self._numbers.shape, self._cache))
            self._replays[size] = capture(functools.partial(self._run, size))

    def check(self, run: Callable[[ForwardPlan], torch.Tensor]) -> None:
        """Compare each graph's logits on contexts of one and several blocks. Raises Mismatch.

        A replay launches the kernels of the recorded step, so it repeats that step without a graph
        nearly bit for bit. `run` computes the same rows from a plan, in products of the same shape;
        only its attention may add in another order.
        """
        is_float32 = self._cache.dtype == torch.float32
        limit = EXACT_LOGITS_TOLERANCE if is_float32 else LOGITS_TOLERANCE
        smaller, num_blocks = 0, self._numbers.shape[1] - BLOCKS
        used = self._sizes[-1] + CHECKED_BLOCKS
        fill_blocks(self._cache, min(used, self._cache.scratch_block))
        for size in self._sizes:
            # Include a padding row, unless the next smaller graph would then be used.
            rows = size - 1 if size - 1 > smaller >= MIN_ROWS else size
            smaller = size
            plan = trial_plan(rows, self._cache, num_blocks)
            padded = trial_plan(rows, self._cache, num_blocks, copies_of_first=size - rows)
            expected = run(padded)[:rows].clone()
            replayed = self.replay(plan, None).clone()
            self._run(size)  # the numbers of the replay are still there
            eager = self._logits[:rows]
            _compare(replayed, eager, row_error, SAME_KERNELS_TOLERANCE, size)
            _compare(replayed, expected, logits_error, limit, size)

    def fits(self, plan: ForwardPlan) -> bool:
        """Whether a graph can replay this step."""
        rows = len(plan.token_ids)
        is_decode = plan.num_decodes == rows and not plan.has_adapters
        return is_decode and rows <= self._sizes[-1] and plan.num_placeholders <= len(self._sampled)

    def replay(self, plan: ForwardPlan, sampled: torch.Tensor | None) -> torch.Tensor:
        """Replay a step that `fits`; return the logits of all rows, valid until the next pass."""
        rows = len(plan.token_ids)
        size = next(size for size in self._sizes if size >= rows)
        numbers = _padding((size, self._numbers.shape[1]), self._cache)
        _lay_out(plan, numbers.numpy())
        if self._numbers.device.type == "cuda":
            numbers = numbers.pin_memory()
        self._numbers[:size].copy_(numbers, non_blocking=True)
        if sampled is not None:
            self._sampled[: len(sampled)].copy_(sampled)
        self._replays[size]()
        return self._logits[:rows]

    def _run(self, size: int) -> None:
        numbers = self._numbers[:size]
        ids = numbers[:, ID].long()
        ids = fill_placeholders(ids, self._sampled)
        step = self._step(numbers)
        self._logits[:size].copy_(self._run_model(ids, numbers[:, POSITION].long(), step))

    def _step(self, numbers: torch.Tensor) -> AttentionMetadata:
        size, width = len(numbers), numbers.shape[1] - BLOCKS
        context_lens, blocks = (
            numbers[:, CONTEXT_LEN].contiguous(),
            numbers[:, BLOCKS:].contiguous(),
        )
        # The reference attends by groups; it serves layers that torch's kernel does not support.
        group = DecodeGroup(0, size, blocks.long(), context_lens.long())
        tables, decodes = None, None
        if self._kernels.decodes is Kernel.TRITON:
            decodes = DecodeMetadata(context_lens, blocks)
        elif self._kernels.decodes is not Kernel.REFERENCE:
            starts = torch.arange(size + 1, dtype=torch.int32, device=numbers.device)
            tables = VarlenMetadata(starts, context_lens, blocks, 1, width * self._cache.block_size)
        slot_mapping = numbers[:, SLOT].long()
        return AttentionMetadata(self._cache, slot_mapping, [group], [], tables, decodes=decodes)


def _compare(
    got: torch.Tensor,
    expected: torch.Tensor,
    distance: Callable[[torch.Tensor, torch.Tensor], float],
    limit: float,
    size: int,
) -> None:
    off = distance(got, expected)
    if not off <= limit:
        raise Mismatch(f"the CUDA graph of {size} rows is off by {off:.2g} (limit {limit})")


def trial_plan(
    rows: int, cache: KVCache, max_blocks: int = 1, *, copies_of_first: int = 0
) -> ForwardPlan:
    """Create decodes with contexts of one block and more, whose content is arbitrary.

    Each row writes to its own slot; the blocks before that one are shared. Copies of the first row
    pad the step without an effect on the other rows.
    """
    size, num_blocks = cache.block_size, cache.scratch_block
    width = max(1, min(CHECKED_BLOCKS, max_blocks, num_blocks))
    indexes = [*range(rows), *[0] * copies_of_first]
    earlier = [[(1 + row + at) % num_blocks for at in range(row % width)] for row in indexes]
    tables = [
        [*blocks, row // size % num_blocks] for row, blocks in zip(indexes, earlier, strict=True)
    ]
    context_lens = [row % width * size + row % size + 1 for row in indexes]
    padding = [cache.scratch_block]
    return ForwardPlan(
        token_ids=[1 + row % 7 for row in indexes],
        positions=[count - 1 for count in context_lens],
        slot_mapping=[
            table[-1] * size + row % size for row, table in zip(indexes, tables, strict=True)
        ],
        logit_rows=list(range(len(indexes))),
        groups=[
            GroupPlan(
                0, len(indexes), [table + padding * (width - len(table)) for table in tables],
                context_lens,
            )
        ],
        chunks=[],
        num_decodes=len(indexes),
        adapters=[(NO_ADAPTER, len(indexes))],
    )  # fmt: skip


def _padding(shape: tuple[int, ...], cache: KVCache) -> torch.Tensor:
    """Create rows that write to the scratch block and attend to one token of it."""
    rows = torch.zeros(shape, dtype=torch.int32)
    rows[:, SLOT] = cache.scratch_block * cache.block_size
    rows[:, CONTEXT_LEN] = 1
    rows[:, BLOCKS:] = cache.scratch_block
    return rows


def _lay_out(plan: ForwardPlan, numbers: "np.ndarray[tuple[int, ...], np.dtype[np.int32]]") -> None:
    """Write a plan's rows over the padding."""
    rows = len(plan.token_ids)
    numbers[:rows, ID] = plan.token_ids
    numbers[:rows, POSITION] = plan.positions
    numbers[:rows, SLOT] = plan.slot_mapping
    for group in plan.groups:
        numbers[group.start : group.stop, CONTEXT_LEN] = group.context_lens
        width = len(group.block_table[0])
        numbers[group.start : group.stop, BLOCKS : BLOCKS + width] = group.block_table
