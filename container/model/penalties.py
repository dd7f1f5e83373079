"""Changes to logits that depend on what a sequence has said so far, or on its own wishes.

Each function takes the logits of the whole batch, [rows, vocabulary] in float32, and changes the
rows whose params ask for it. Formulas: repetition penalty of Keskar et al. (2019), as in
transformers; TGI's frequency penalty, a share of the context (server/.../logits_process.py);
OpenAI's frequency and presence penalties, counts of the completion; the green-list watermark of
Kirchenbauer et al. (2023) with TGI's hash.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch

from container.engine.sequence import Sequence
from container.messages import SamplingParams

WATERMARK_KEY = 15_485_863
LARGEST = 1e30

Wants = Callable[[SamplingParams], bool]


class TokenCounts:
    """How often each token occurs in a sequence; grows by the new tokens only.

    `from_index` counts a sequence from that index on. Entries go when their sequence goes.
    """

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Sequence, dict[int, tuple[int, torch.Tensor]]] = (
            WeakKeyDictionary()
        )

    def get(self, sequence: Sequence, from_index: int, vocabulary: int) -> torch.Tensor:
        """Return [vocabulary] in float32; to be read only."""
        of_sequence = self._known.setdefault(sequence, {})
        seen, counts = of_sequence.get(from_index, (from_index, torch.zeros(vocabulary)))
        new = torch.tensor(sequence.token_ids[seen:])
        if len(new):
            counts.index_add_(0, new, torch.ones(len(new)))
        of_sequence[from_index] = (len(sequence.token_ids), counts)
        return counts


def penalise(
    logits: torch.Tensor,
    sequences: list[Sequence],
    counts: TokenCounts,
    *,
    counts_prompt: bool = True,
) -> None:
    """Apply TGI's penalties on the context and OpenAI's on the completion."""
    rows, told = _counted(logits, sequences, counts, _penalises_context, from_prompt=counts_prompt)
    if rows:
        selected = logits[rows]
        repetition = _column(logits, sequences, rows, lambda p: p.repetition_penalty)
        penalised = torch.where(selected < 0, selected * repetition, selected / repetition)
        selected = torch.where(told > 0, penalised, selected)
        share = told / told.sum(-1, keepdim=True).clamp_(min=1.0)
        penalty = _column(logits, sequences, rows, lambda p: p.context_frequency_penalty)
        # A tiny or huge penalty must not make infinities, which would hide or equal all others.
        logits[rows] = (selected - share * penalty).clamp_(-LARGEST, LARGEST)
    rows, told = _counted(logits, sequences, counts, _penalises_completion, from_prompt=False)
    if rows:
        frequency = _column(logits, sequences, rows, lambda p: p.frequency_penalty)
        presence = _column(logits, sequences, rows, lambda p: p.presence_penalty)
        logits[rows] -= told * frequency + (told > 0) * presence


def add_bias(logits: torch.Tensor, sequences: list[Sequence]) -> None:
    """Add `logit_bias` to the tokens that it names."""
    for row, sequence in enumerate(sequences):
        bias = sequence.params.logit_bias
        if bias:
            index = torch.tensor(list(bias), device=logits.device)
            logits[row, index] += torch.tensor(list(bias.values()), device=logits.device)


def hide_ends(
    logits: torch.Tensor, sequences: list[Sequence], end_token_ids: frozenset[int]
) -> None:
    """Hide the tokens that end a sequence which must go on."""
    for row, sequence in enumerate(sequences):
        # A grammar says itself where a completion may end.
        is_free = sequence.constraint is None
        if is_free and sequence.completion_len < sequence.params.min_tokens:
            ends = end_token_ids | set(sequence.params.stop_token_ids)
            inside = [token_id for token_id in ends if token_id < logits.shape[-1]]
            logits[row, torch.tensor(inside, dtype=torch.long, device=logits.device)] = -torch.inf


def watermark(logits: torch.Tensor, sequences: list[Sequence]) -> None:
    """Favour a share `gamma` of the vocabulary, chosen by the last token, by `delta`."""
    vocabulary = logits.shape[-1]
    for row, sequence in enumerate(sequences):
        mark = sequence.params.watermark
        if mark is None:
            continue
        generator = torch.Generator().manual_seed(WATERMARK_KEY * sequence.token_ids[-1])
        green = torch.randperm(vocabulary, generator=generator)[: int(vocabulary * mark.gamma)]
        logits[row, green.to(logits.device)] += mark.delta


def _penalises_context(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.context_frequency_penalty != 0.0


def _penalises_completion(params: SamplingParams) -> bool:
    return params.frequency_penalty != 0.0 or params.presence_penalty != 0.0


def _counted(
    logits: torch.Tensor,
    sequences: list[Sequence],
    counts: TokenCounts,
    wants: Wants,
    *,
    from_prompt: bool,
) -> tuple[list[int], torch.Tensor]:
    rows = [row for row, sequence in enumerate(sequences) if wants(sequence.params)]
    told = [
        counts.get(s, 0 if from_prompt else s.prompt_len, logits.shape[-1])
        for s in (sequences[row] for row in rows)
    ]
    return rows, torch.stack(told).to(logits.device) if told else logits[:0]


def _column(
    logits: torch.Tensor,
    sequences: list[Sequence],
    rows: list[int],
    value: Callable[[SamplingParams], float],
) -> torch.Tensor:
    values = [value(sequences[row].params) for row in rows]
    return torch.tensor(values, device=logits.device)[:, None]
