"""How accurate the outputs of checked layers and of modules in them are, row by row."""

from collections.abc import Mapping, Sequence

import torch

from container.model.reference_check import Accuracy, Mismatch, largest, measure

Rows = dict[str, torch.Tensor]  # a module's name and its outputs, [rows, channels]
SMALLEST = 1e-30


def worst_accuracy(
    exact: Rows,
    own: Rows,
    served: Rows,
    dtype: torch.dtype,
    ideal: Rows | None,
    samples: Mapping[str, Sequence[torch.Tensor]],
) -> Accuracy:
    """Return the worst accuracy of the checked modules; see `reference_check.measure`.

    `served` and `ideal` have the rows of a schedule, at "positions" of the others. Raises Mismatch
    if there is nothing to compare.
    """
    at = served["positions"]
    results = [
        measure(
            exact[name][at], own[name][at], rows, dtype, None if ideal is None else ideal[name],
            [squares[at] for squares in samples.get(name, ())],
        )
        for name, rows in served.items()
        if name in exact
    ]  # fmt: skip
    if not results:
        raise Mismatch("none of its layers could be checked")
    return Accuracy(
        largest(result.median for result in results),
        largest(result.worst for result in results),
        dtype,
    )


def largest_error(exact: Rows, served: Rows) -> float:
    """Return the largest relative error of a row that was computed in the exact format."""
    at = served["positions"]
    errors = []
    for name, rows in served.items():
        if name in exact:
            expected = exact[name][at]
            scale = expected.square().mean(0).sqrt().clamp_(min=SMALLEST)
            size = (expected / scale).norm(dim=1).clamp_(SMALLEST)
            errors.append((((rows - expected) / scale).norm(dim=1) / size).max().item())
    if not errors:
        raise Mismatch("none of its layers could be checked")
    return largest(errors)


def nudged(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move each number up or down by about the distance to the next one of its format."""
    signs = torch.randint(0, 2, rows.shape, generator=generator).mul_(2).sub_(1).to(rows)
    return rows + rows * signs * torch.finfo(rows.dtype).eps
