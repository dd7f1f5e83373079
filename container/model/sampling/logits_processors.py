"""Logits processors: penalties, bias, watermark, minimum length, grammar masks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from container.engine.sequence import Sequence
from container.messages.engine import SamplingParams
from container.model.async_copy import send, take_rows, to_device

WATERMARK_KEY = 15_485_863
LARGEST = 1e30
Wants = Callable[[SamplingParams], bool]


class SequenceTokenCounts:
    """Counts the tokens of a sequence; reads only the new tokens on each update."""

    def __init__(self, from_index: int) -> None:
        self._num_read = from_index
        self._index_of: dict[int, int] = {}
        self._ids = np.empty(64, np.int64)
        self._counts = np.empty(64, np.float32)

    @property
    def ids(self) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """The distinct tokens."""
        return self._ids[: len(self._index_of)]

    @property
    def counts(self) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Number of occurrences of each token, in the order of `ids`."""
        return self._counts[: len(self._index_of)]

    def read_on(self, token_ids: list[int]) -> None:
        """Count the tokens that were appended since the last call."""
        for token_id in token_ids[self._num_read :]:
            index = self._index_of.get(token_id)
            if index is None:
                index = self._add(token_id)
            self._counts[index] += 1.0
        self._num_read = len(token_ids)

    def _add(self, token_id: int) -> int:
        index = self._index_of[token_id] = len(self._index_of)
        if index == len(self._ids):
            self._ids = np.resize(self._ids, 2 * index)
            self._counts = np.resize(self._counts, 2 * index)
        self._ids[index], self._counts[index] = token_id, 0.0
        return index


class TokenCounts:
    """Token counts of sequences; an entry is freed with its sequence."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Sequence, dict[int, SequenceTokenCounts]] = (
            WeakKeyDictionary()
        )

    def get(self, sequence: Sequence, from_index: int) -> SequenceTokenCounts:
        """Return the counts of a sequence's tokens from that index on; read-only."""
        by_start = self._known.setdefault(sequence, {})
        tokens = by_start.get(from_index)
        if tokens is None:
            tokens = by_start[from_index] = SequenceTokenCounts(from_index)
        tokens.read_on(sequence.token_ids)
        return tokens


@dataclass(frozen=True, slots=True)
class _Cells:
    """The logits that penalties change: those of the tokens that occur in a sequence.

    `places` are indices into the flat logits; `counts` and `total` are the occurrences of the token
    and of all tokens; `owner` is the index into `params`. All are [cells].
    """

    indices: torch.Tensor
    counts: torch.Tensor
    total: torch.Tensor
    owner: torch.Tensor
    params: list[SamplingParams]

    def column(self, value: Callable[[SamplingParams], float]) -> torch.Tensor:
        """Return a parameter of each cell's sequence, [cells]."""
        values = to_device([value(params) for params in self.params], self.owner.device)
        return values[self.owner]


def penalise(
    logits: torch.Tensor,
    sequences: list[Sequence],
    counts: TokenCounts,
    *,
    counts_prompt: bool = True,
) -> None:
    """Apply TGI's penalties on the context and OpenAI's on the completion."""
    flat = logits.view(-1)
    cells = _cells(logits, sequences, counts, _penalises_context, from_prompt=counts_prompt)
    if cells is not None:
        selected = flat[cells.indices]
        repetition = cells.column(lambda p: p.repetition_penalty)
        selected = torch.where(selected < 0, selected * repetition, selected / repetition)
        penalty = cells.column(lambda p: p.context_frequency_penalty)
        selected = selected - cells.counts / cells.total * penalty
        # Clamped, since a tiny or huge penalty could overflow to infinity, which hides a token or
        # makes it certain.
        flat[cells.indices] = selected.clamp_(-LARGEST, LARGEST)
    cells = _cells(logits, sequences, counts, _penalises_completion, from_prompt=False)
    if cells is not None:
        frequency = cells.column(lambda p: p.frequency_penalty)
        presence = cells.column(lambda p: p.presence_penalty)
        flat[cells.indices] -= cells.counts * frequency + presence


def add_bias(logits: torch.Tensor, sequences: list[Sequence]) -> None:
    """Add `logit_bias` to the tokens that it names."""
    for row, sequence in enumerate(sequences):
        bias = sequence.params.logit_bias
        if bias:
            index = to_device(list(bias), logits.device)
            logits[row].index_add_(0, index, to_device(list(bias.values()), logits.device))


def hide_ends(
    logits: torch.Tensor, sequences: list[Sequence], end_token_ids: frozenset[int]
) -> None:
    """Hide end tokens in sequences that have not reached `min_tokens`.

    Where nothing else may come, by a grammar or a list of tokens, they stay.
    """
    for row, sequence in enumerate(sequences):
        if sequence.completion_len < sequence.params.min_tokens:
            ends = end_token_ids | set(sequence.params.stop_token_ids)
            inside = [token_id for token_id in ends if token_id < logits.shape[-1]]
            index = to_device(inside, logits.device, torch.long)
            hidden = logits[row].index_fill(0, index, -torch.inf)
            # Without a branch, which would wait for the device.
            logits[row] = torch.where(hidden.isfinite().any(), hidden, logits[row])


def hide_others(logits: torch.Tensor, rows: list[int], sequences: list[Sequence]) -> None:
    """Hide all tokens of these rows but the `allowed_token_ids`."""
    for row in rows:
        index = to_device(sequences[row].params.allowed_token_ids, logits.device, torch.long)
        allowed = torch.full_like(logits[row], -torch.inf).index_fill_(0, index, 0.0)
        logits[row] += allowed


def hide_bad_words(logits: torch.Tensor, rows: list[int], sequences: list[Sequence]) -> None:
    """Hide the last token of each of the `bad_words` whose other tokens have just come."""
    for row in rows:
        sequence = sequences[row]
        completion = sequence.token_ids[sequence.prompt_len :]
        last = {
            word[-1]
            for word in sequence.params.bad_words
            if len(word) == 1 or completion[1 - len(word) :] == word[:-1]
        }
        inside = [token_id for token_id in last if token_id < logits.shape[-1]]
        index = to_device(inside, logits.device, torch.long)
        logits[row].index_fill_(0, index, -torch.inf)


def watermark(logits: torch.Tensor, sequences: list[Sequence]) -> None:
    """Favour a share `gamma` of the vocabulary, chosen by the last token, by `delta`."""
    vocabulary = logits.shape[-1]
    for row, sequence in enumerate(sequences):
        mark = sequence.params.watermark
        if mark is None:
            continue
        generator = torch.Generator().manual_seed(WATERMARK_KEY * sequence.token_ids[-1])
        delta = to_device([mark.delta], logits.device)
        green = torch.randperm(vocabulary, generator=generator)[: int(vocabulary * mark.gamma)]
        logits[row].index_add_(0, send(green, logits.device), delta.expand(len(green)))


def _penalises_context(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.context_frequency_penalty != 0.0


def _penalises_completion(params: SamplingParams) -> bool:
    return params.frequency_penalty != 0.0 or params.presence_penalty != 0.0


def _cells(
    logits: torch.Tensor,
    sequences: list[Sequence],
    counts: TokenCounts,
    wants: Wants,
    *,
    from_prompt: bool,
) -> _Cells | None:
    """Collect the cells of the rows that have a penalty; None if there are no cells."""
    rows = [row for row, sequence in enumerate(sequences) if wants(sequence.params)]
    row_tokens = [
        counts.get(sequences[row], 0 if from_prompt else sequences[row].prompt_len) for row in rows
    ]
    if not any(len(tokens.ids) for tokens in row_tokens):
        return None
    vocabulary, device = logits.shape[-1], logits.device
    cells = [tokens.ids + row * vocabulary for row, tokens in zip(rows, row_tokens, strict=True)]
    lengths = [len(tokens.ids) for tokens in row_tokens]
    totals = np.array([tokens.counts.sum() for tokens in row_tokens], np.float32)
    owner = np.repeat(np.arange(len(rows)), lengths)
    return _Cells(
        to_device(np.concatenate(cells), device),
        to_device(np.concatenate([tokens.counts for tokens in row_tokens]), device),
        to_device(totals[owner], device),
        to_device(owner, device),
        [sequences[row].params for row in rows],
    )


def constrain(logits: torch.Tensor, rows: list[int], sequences: list[Sequence]) -> None:
    """Hide the tokens that the grammars of these rows do not allow next."""
    vocabulary = logits.shape[-1]
    masks = np.zeros((len(rows), -(-vocabulary // 32)), np.int32)
    for row, mask in zip(rows, masks, strict=True):
        constraint = sequences[row].constraint
        assert constraint is not None
        constraint.fill(mask)
    if logits.device.type == "cpu":
        allowed = np.unpackbits(masks.view(np.uint8), axis=-1, bitorder="little")[:, :vocabulary]
        for row, hidden in zip(rows, torch.from_numpy(allowed == 0), strict=True):
            logits[row].masked_fill_(hidden, float("-inf"))
        return
    words = to_device(masks, logits.device)
    bits = words[..., None] >> torch.arange(32, dtype=torch.int32, device=logits.device)
    hidden = (bits & 1).flatten(1)[:, :vocabulary] == 0
    selected = take_rows(logits, rows).masked_fill(hidden, float("-inf"))
    logits.index_copy_(0, to_device(rows, logits.device), selected)
