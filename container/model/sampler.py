"""The sampler: the next token of each row of logits, vectorised over the batch.

A feature that no row uses costs nothing. Order, as in TGI: penalties and bias, grammar, then
temperature, top_k, top_p, typical_p, min_p. Randomness is a number in [0, 1) computed from a row's
seed and its token's index alone (never drawn from a generator), which picks a token by inverse
transform; so a request with a seed gets the same tokens whatever runs beside it.
"""

from collections.abc import Callable

import numpy as np
import torch

from container.engine.batch import Sampled
from container.engine.constraint import Constraint
from container.engine.sequence import Sequence
from container.messages import LogprobMode, SamplingParams
from container.model import penalties
from container.model.kernels import argmax
from container.model.shortlist import draw_short, is_short

# Rows whose top_p mass lies within this many tokens need no full sort of the vocabulary.
NUCLEUS_PROBE = 1024
_MASK = (1 << 64) - 1


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on the seed and the token's index only.

    Two rounds of SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014); 53 bits are kept.
    """
    return (_mix(_mix(seed & _MASK) + index) >> 11) * 2.0**-53


class Sampler:
    """Owns the token counts that penalties need; used by the runner only.

    `counts_prompt`: whether the context that TGI's penalties look at begins with the prompt, as it
    does unless an encoder reads that.
    """

    def __init__(
        self, end_token_ids: frozenset[int] = frozenset(), *, counts_prompt: bool = True
    ) -> None:
        self._end_token_ids = end_token_ids
        self._counts_prompt = counts_prompt
        self._counts = penalties.TokenCounts()
        self._mask = np.zeros(0, np.int32)

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[Sampled]:
        """Pick a token for each row of logits [rows, vocabulary], float32; changes the logits."""
        raw_rows = _rows(sequences, lambda p: p.logprobs is LogprobMode.RAW)
        raw = torch.log_softmax(logits[raw_rows], -1) if raw_rows else None
        self._adjust(logits, sequences)
        token_ids = _choose(logits, sequences)
        told: dict[int, Sampled] = {}
        if raw is not None:
            told |= _with_logprobs(raw, raw_rows, token_ids, sequences)
        rows = _rows(sequences, lambda p: p.logprobs is LogprobMode.PROCESSED)
        if rows:
            told |= _with_logprobs(logits[rows].log_softmax(-1), rows, token_ids, sequences)
        return [told.get(row) or Sampled(token_id) for row, token_id in enumerate(token_ids)]

    def _adjust(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        if _rows(sequences, lambda p: p.watermark is not None):
            penalties.watermark(logits, sequences)
        penalties.penalise(logits, sequences, self._counts, counts_prompt=self._counts_prompt)
        if _rows(sequences, lambda p: bool(p.logit_bias)):
            penalties.add_bias(logits, sequences)
        if _rows(sequences, lambda p: p.min_tokens > 0):
            penalties.hide_ends(logits, sequences, self._end_token_ids)
        for row, sequence in enumerate(sequences):
            if sequence.constraint is not None:
                self._constrain(logits[row], sequence.constraint)

    def _constrain(self, row: torch.Tensor, constraint: Constraint) -> None:
        """Hide the tokens that a grammar does not allow next."""
        vocabulary = len(row)
        if len(self._mask) * 32 < vocabulary:
            self._mask = np.zeros(-(-vocabulary // 32), np.int32)
        constraint.fill(self._mask)
        allowed = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[:vocabulary]
        row.masked_fill_(torch.from_numpy(allowed == 0).to(row.device), float("-inf"))


def _choose(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """Take the most likely token of greedy rows, draw the others'."""
    short = _rows(sequences, is_short)
    drawn = _rows(sequences, lambda p: not p.is_greedy and not is_short(p))
    if len(short) == len(sequences):
        return _draw_short(logits, sequences, short)
    if drawn:
        _warp(logits, sequences)
        token_ids: list[int] = _draw(logits, sequences, drawn).tolist()
    else:
        token_ids = argmax(logits).tolist()
    if short:
        for row, token_id in zip(short, _draw_short(logits, sequences, short), strict=True):
            token_ids[row] = token_id
    return token_ids


def _draw_short(logits: torch.Tensor, sequences: list[Sequence], rows: list[int]) -> list[int]:
    selected = logits if len(rows) == len(logits) else logits[rows]
    numbers = [uniform(sequences[row].seed, sequences[row].completion_len) for row in rows]
    return draw_short(selected, [sequences[row].params for row in rows], numbers)


def _warp(logits: torch.Tensor, sequences: list[Sequence]) -> None:
    """Apply temperature and the filters in place.

    Greedy rows keep their logits, and so do those that are drawn from a short list.
    """
    divisors = [_divisor(sequence.params) for sequence in sequences]
    logits.div_(torch.tensor(divisors, device=logits.device)[:, None])
    params = [sequence.params for sequence in sequences]
    vocabulary = logits.shape[-1]

    def takes_part(p: SamplingParams) -> bool:
        return not p.is_greedy and not is_short(p)

    for row in _rows(sequences, lambda p: 0 < p.top_k < vocabulary and takes_part(p)):
        worst = logits[row].topk(params[row].top_k).values[-1]
        logits[row].masked_fill_(logits[row] < worst, float("-inf"))
    rows = _rows(sequences, lambda p: p.top_p < 1.0 and takes_part(p))
    if rows:
        _keep_nucleus(logits, rows, [params[row].top_p for row in rows])
    for row in _rows(sequences, lambda p: p.typical_p < 1.0 and not p.is_greedy):
        _keep_typical(logits[row], params[row].typical_p)
    for row in _rows(sequences, lambda p: p.min_p > 0.0 and takes_part(p)):
        floor = logits[row].max() + torch.tensor(params[row].min_p).log()
        logits[row].masked_fill_(logits[row] < floor, float("-inf"))


def _divisor(params: SamplingParams) -> float:
    # Beyond these the quotient could overflow, or hidden tokens come back; nothing else changes.
    return 1.0 if params.is_greedy or is_short(params) else min(max(params.temperature, 1e-6), 1e6)


def _keep_nucleus(logits: torch.Tensor, rows: list[int], top_ps: list[float]) -> None:
    """Keep the fewest most likely tokens whose probabilities reach top_p; at least one."""
    index = torch.tensor(rows, device=logits.device)
    mass = torch.tensor(top_ps, device=logits.device, dtype=torch.float32)[:, None]
    selected = logits.index_select(0, index)
    total = selected.logsumexp(-1, keepdim=True)
    count = min(NUCLEUS_PROBE, logits.shape[-1])
    while True:
        best = selected.topk(count, -1).values
        cumulative = (best - total).exp().cumsum(-1)
        if count == logits.shape[-1] or bool((cumulative[:, -1:] >= mass).all()):
            break
        count = logits.shape[-1]
    # The first token at which the mass is reached is the last one kept.
    last = (cumulative < mass).sum(-1, keepdim=True).clamp_(max=count - 1)
    worst = best.gather(-1, last)
    logits.index_copy_(0, index, selected.masked_fill_(selected < worst, float("-inf")))


def _keep_typical(row: torch.Tensor, mass: float) -> None:
    """Keep the tokens whose information is nearest to the entropy (Meister et al., 2022)."""
    logprobs = row.log_softmax(-1)
    probabilities = logprobs.exp()
    entropy = -(logprobs * probabilities).nansum()
    distance, order = (-logprobs - entropy).abs().sort()
    cumulative = probabilities[order].cumsum(-1)
    last = int((cumulative < mass).sum().clamp_(max=len(row) - 1))
    row.masked_fill_((-logprobs - entropy).abs() > distance[last], float("-inf"))


def _draw(logits: torch.Tensor, sequences: list[Sequence], rows: list[int]) -> torch.Tensor:
    """Take the argmax of greedy rows, and invert the others' cumulative distribution."""
    chosen = argmax(logits)
    numbers = [uniform(sequences[row].seed, sequences[row].completion_len) for row in rows]
    index = torch.tensor(rows, device=logits.device)
    probabilities = logits.index_select(0, index).softmax(-1)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    u = torch.tensor(numbers, device=logits.device, dtype=torch.float64)[:, None]
    # Strictly greater than u * total: a token of probability 0 is never picked.
    drawn = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0]
    drawn = drawn.clamp_(max=logits.shape[-1] - 1)
    return chosen.index_copy_(0, index, drawn)


def _rows(sequences: list[Sequence], wants: Callable[[SamplingParams], bool]) -> list[int]:
    return [row for row, sequence in enumerate(sequences) if wants(sequence.params)]


def _with_logprobs(
    logprobs: torch.Tensor, rows: list[int], token_ids: list[int], sequences: list[Sequence]
) -> dict[int, Sampled]:
    """Tokens with their log-probability and the most likely ones, by row of the batch."""
    wanted = torch.tensor([token_ids[row] for row in rows], device=logprobs.device)
    picked = logprobs.gather(-1, wanted[:, None])[:, 0].tolist()
    most = max(sequences[row].params.top_logprobs for row in rows)
    best = logprobs.topk(most, -1) if most else None
    told = {}
    for place, row in enumerate(rows):
        count = sequences[row].params.top_logprobs
        top: tuple[tuple[int, float], ...] = ()
        if best is not None and count:
            ids, values = best.indices[place, :count].tolist(), best.values[place, :count].tolist()
            top = tuple(zip(ids, values, strict=True))
        told[row] = Sampled(token_ids[row], picked[place], top)
    return told


def _mix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
