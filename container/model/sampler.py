"""The sampler: the next token of each row of logits, vectorised over the batch.

A feature that no row uses costs nothing. Order, as in TGI: penalties and bias, grammar, then
temperature, top_k, top_p, typical_p, min_p. Randomness is a number in [0, 1) computed from a row's
seed and its token's index alone (never drawn from a generator), which picks a token by inverse
transform; so a request with a seed gets the same tokens whatever runs beside it.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from container.engine.batch import Sampled
from container.engine.constraint import Constraint
from container.engine.sequence import Sequence
from container.messages import LogprobMode, SamplingParams
from container.model import penalties
from container.model.kernels import argmax
from container.model.shortlist import divisor, draw_short, largest, may_be_short, take_rows

# Most nuclei lie within this many tokens, so that no more probabilities are added up.
NUCLEUS_PROBE = 1024
# Tokens of a piece, when a draw looks for the piece first.
PIECE = 256
BELOW_ONE = 1 - 2**-52
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
    token_ids: list[int | None] = [None] * len(sequences)
    if greedy := _rows(sequences, lambda p: p.is_greedy):
        _put(token_ids, greedy, argmax(take_rows(logits, greedy)).tolist())
    if listed := _rows(sequences, may_be_short):
        params, numbers = _params(sequences, listed), _numbers(sequences, listed)
        _put(token_ids, listed, draw_short(take_rows(logits, listed), params, numbers))
    # What is left needs the whole vocabulary.
    if rows := [row for row, token_id in enumerate(token_ids) if token_id is None]:
        selected = take_rows(logits, rows)
        _warp(selected, _params(sequences, rows))
        if selected is not logits:
            logits[rows] = selected  # log-probabilities may be wanted of these
        _put(token_ids, rows, _draw(selected, _numbers(sequences, rows)))
    return [token_id for token_id in token_ids if token_id is not None]


def _put(token_ids: list[int | None], rows: list[int], chosen: Iterable[int | None]) -> None:
    """Fill in what is chosen for some rows."""
    for row, token_id in zip(rows, chosen, strict=True):
        token_ids[row] = token_id


def _params(sequences: list[Sequence], rows: list[int]) -> list[SamplingParams]:
    return [sequences[row].params for row in rows]


def _numbers(sequences: list[Sequence], rows: list[int]) -> list[float]:
    """The number in [0, 1) that picks each row's token."""
    return [uniform(sequences[row].seed, sequences[row].completion_len) for row in rows]


def _warp(logits: torch.Tensor, params: list[SamplingParams]) -> None:
    """Apply temperature and the filters to all rows, in place."""
    divisors = torch.tensor([divisor(one) for one in params], device=logits.device)
    logits.div_(divisors[:, None])
    vocabulary = logits.shape[-1]
    for row, one in enumerate(params):
        if 0 < one.top_k < vocabulary:
            worst = logits[row].topk(one.top_k).values[-1]
            logits[row].masked_fill_(logits[row] < worst, float("-inf"))
    rows = [row for row, one in enumerate(params) if one.top_p < 1.0]
    if rows:
        _keep_nucleus(logits, rows, [params[row].top_p for row in rows])
    for row, one in enumerate(params):
        if one.typical_p < 1.0:
            _keep_typical(logits[row], one.typical_p)
        if one.min_p > 0.0:
            floor = logits[row].max() + torch.tensor(one.min_p).log()
            logits[row].masked_fill_(logits[row] < floor, float("-inf"))


def _keep_nucleus(logits: torch.Tensor, rows: list[int], top_ps: list[float]) -> None:
    """Keep the fewest most likely tokens whose probabilities reach top_p; at least one."""
    index = torch.tensor(rows, device=logits.device)
    mass = torch.tensor(top_ps, device=logits.device, dtype=torch.float32)[:, None]
    selected = logits.index_select(0, index)
    total = selected.logsumexp(-1, keepdim=True)
    for count in (min(NUCLEUS_PROBE, logits.shape[-1]), logits.shape[-1]):
        best = largest(selected, count)
        cumulative = (best - total).exp().cumsum(-1)
        if bool((cumulative[:, -1:] >= mass).all()):
            break
    # The first token at which the mass is reached is the last one kept.
    last = (cumulative < mass).sum(-1, keepdim=True).clamp_(max=best.shape[-1] - 1)
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


def _draw(logits: torch.Tensor, numbers: list[float]) -> list[int]:
    """Invert the cumulative distribution of each row of logits [rows, vocabulary].

    In two stages: which piece of the vocabulary, then which token of the piece.
    """
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()
    if rest := -weights.shape[-1] % PIECE:
        weights = torch.nn.functional.pad(weights, (0, rest))
    pieces = weights.unflatten(-1, (-1, PIECE))
    ends = pieces.sum(-1).cumsum(-1, dtype=torch.float64)  # [rows, pieces]
    u = torch.tensor(numbers, device=logits.device, dtype=torch.float64)[:, None]
    wanted = torch.minimum(u * ends[:, -1:], ends[:, -1:] * BELOW_ONE)
    # Clamped for rows without any number to go by; their token is as good as another.
    piece = torch.searchsorted(ends, wanted, right=True).clamp_(max=ends.shape[-1] - 1)
    before = torch.where(piece > 0, ends.gather(-1, (piece - 1).clamp_(min=0)), 0.0)
    inside = pieces.gather(1, piece[..., None].expand(-1, 1, PIECE))[:, 0]
    inside = inside.cumsum(-1, dtype=torch.float64)
    # Strictly greater than what is wanted: a token of probability 0 is never picked.
    wanted = torch.minimum(wanted - before, inside[:, -1:] * BELOW_ONE)
    place = torch.searchsorted(inside, wanted, right=True)
    drawn: list[int] = (piece * PIECE + place)[:, 0].clamp_(max=logits.shape[-1] - 1).tolist()
    return drawn


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
