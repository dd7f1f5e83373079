"""The inputs of a language model for the tokens of a prompt with images, and for a step's rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from container.model.forward_batch import ForwardPlan

EMBEDS = "inputs_embeds"
POSITIONS = "position_ids"
# Arguments of a language model that paged attention replaces.
REPLACED = {"attention_mask", "past_key_values", "input_ids", "cache_params", POSITIONS}


class UnknownInput(Exception):
    """A language model takes an argument for images whose rows are unknown."""


@dataclass(frozen=True, slots=True)
class PromptInputs:
    """Inputs of the language model for the tokens of a prompt.

    `rows` have a row for each token, [tokens, ...], by the names of the arguments. `positions` are
    [axes, tokens]: more than one axis for positions in the plane of an image (M-RoPE). `marks` say
    which tokens the tensors of `marked` have a row for: [tokens], and [marked tokens, ...] each.
    """

    rows: dict[str, torch.Tensor]
    positions: torch.Tensor
    marks: dict[str, torch.Tensor]
    marked: dict[str, list[torch.Tensor]]

    @classmethod
    def of(cls, arguments: dict[str, Any], positions: torch.Tensor) -> "PromptInputs":
        """Read a call of the language model for one prompt. Raises UnknownInput."""
        count = arguments[EMBEDS].shape[1]
        rows: dict[str, torch.Tensor] = {}
        marks: dict[str, torch.Tensor] = {}
        for name, value in _tensors(arguments).items():
            if value.shape[:2] != (1, count):
                raise UnknownInput(f"its language model takes {name} for images")
            if value.dtype == torch.bool and value.dim() == 2:
                marks[name] = value[0]
            else:
                rows[name] = value[0]
        marked = _lists(arguments)
        num_marked = int(next(iter(marks.values())).sum()) if len(marks) == 1 else None
        for name, tensors in marked.items():
            if any(len(tensor) != num_marked for tensor in tensors):
                raise UnknownInput(f"its language model takes {name} for images")
        return cls(rows, positions, marks, marked)

    def __len__(self) -> int:
        return self.positions.shape[1]

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def keep_for_stream(self) -> None:
        """Keep the memory until the kernels queued here have run, if another stream made it."""
        for tensor in self._tensors():
            if tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream(tensor.device))

    def _tensors(self) -> list[torch.Tensor]:
        marked = [tensor for tensors in self.marked.values() for tensor in tensors]
        return [*self.rows.values(), *self.marks.values(), *marked, self.positions]

    def part(self, start: int, stop: int) -> "PromptInputs":
        """Return the inputs of the tokens from `start` to `stop`."""
        marked = {}
        if self.marked:
            (marks,) = self.marks.values()
            first, last = int(marks[:start].sum()), int(marks[:stop].sum())
            marked = {
                name: [tensor[first:last] for tensor in tensors]
                for name, tensors in self.marked.items()
            }
        return PromptInputs(
            {name: rows[start:stop] for name, rows in self.rows.items()},
            self.positions[:, start:stop],
            {name: marks[start:stop] for name, marks in self.marks.items()},
            marked,
        )


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Parts of prompts with images, each with its first row of a step, in the rows' order."""

    parts: Sequence[tuple[int, PromptInputs]]

    def merged_into(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return a call's arguments with these parts in the place of their rows.

        `arguments` are those for ids alone: `inputs_embeds` [1, rows, hidden], `position_ids`
        [1, rows].
        """
        merged = dict(arguments)
        first_part = self.parts[0][1]
        for name in first_part.rows:
            merged[name] = self._merged_rows(arguments[name], name)
        merged[POSITIONS] = self._merged_positions(arguments[POSITIONS])
        num_rows = arguments[EMBEDS].shape[1]
        for name, marks in first_part.marks.items():
            merged[name] = self._merged_rows(marks.new_zeros(1, num_rows), name)
        for name, tensors in first_part.marked.items():
            merged[name] = [
                torch.cat([part.marked[name][index] for _, part in self.parts])
                for index in range(len(tensors))
            ]
        return merged

    def _merged_rows(self, rows: torch.Tensor, name: str) -> torch.Tensor:
        merged = rows.clone()
        for first, part in self.parts:
            source = part.rows[name] if name in part.rows else part.marks[name]
            merged[0, first : first + len(part)] = source
        return merged

    def _merged_positions(self, positions: torch.Tensor) -> torch.Tensor:
        axes = len(self.parts[0][1].positions)
        merged = positions.expand(axes, -1).clone()
        for first, part in self.parts:
            merged[:, first : first + len(part)] = part.positions
        return merged if axes == 1 else merged[:, None]


def step_inputs(
    plan: ForwardPlan, prompts: Iterable[tuple[PromptInputs | None, int]]
) -> StepInputs | None:
    """Return the inputs of a step; None if all of its rows have the inputs of their ids.

    `prompts` has the inputs of each chunk's prompt, and where its images end.
    """
    parts = []
    for chunk, (prompt, image_end) in zip(plan.chunks, prompts, strict=True):
        start = chunk.context_len - (chunk.stop - chunk.start)
        stop = min(chunk.context_len, image_end)
        if prompt is not None and start < stop:
            parts.append((chunk.start, prompt.part(start, stop)))
    return StepInputs(parts) if parts else None


def _tensors(arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor) and name not in REPLACED
    }


def _lists(arguments: dict[str, Any]) -> dict[str, list[torch.Tensor]]:
    return {
        name: list(value)
        for name, value in arguments.items()
        if isinstance(value, list | tuple)
        and name not in REPLACED
        and any(isinstance(item, torch.Tensor) for item in value)
    }
