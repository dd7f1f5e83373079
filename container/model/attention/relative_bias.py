"""Biases of attention scores that depend on the distance of a key from its query, as in T5.

A table is [heads, distances]: the bias of a key by its distance before the query in tokens. Keys
that lie further away than the table's end have its last bias.
"""

import torch


def without_constant_tail(table: torch.Tensor) -> torch.Tensor:
    """Shorten a table by the distances whose bias is that of the last one."""
    changes = (table != table[:, -1:]).any(0).nonzero()
    count = int(changes[-1]) + 2 if len(changes) else 1
    return table[:, :count].contiguous()


def of_distances(table: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """Return the biases at distances of any shape: [heads, *shape].

    Negative distances are those of keys that the query does not see.
    """
    return table[:, distances.clamp(0, table.shape[1] - 1)]


def of_rows(table: torch.Tensor, start: int, count: int, first: int, keys: int) -> torch.Tensor:
    """Return the biases of queries from position `start` on, keys from `first` on.

    The result is [heads, count, keys].
    """
    query = torch.arange(start, start + count, device=table.device)
    position = torch.arange(first, first + keys, device=table.device)
    return of_distances(table, query[:, None] - position)


def of_ends(table: torch.Tensor, context_lens: torch.Tensor, keys: int) -> torch.Tensor:
    """Return the biases of the last query of each context: [sequences, heads, keys]."""
    position = torch.arange(keys, device=table.device)
    distances = (context_lens - 1)[:, None] - position
    return of_distances(table, distances).transpose(0, 1)
