"""The sampler: the next token of each row of logits, vectorised over the batch.

A feature that no row uses costs nothing. Order, as in TGI: penalties and bias, grammar, then
temperature, top_k, top_p, typical_p, min_p. Randomness is a number in [0, 1) computed from a row's
seed and its token's index alone (never drawn from a generator), which picks a token by inverse
transform; so a request with a seed gets the same tokens whatever runs beside it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from container.engine.batch import Sampled
from container.engine.sequence import Sequence
from container.messages import LogprobMode, SamplingParams
from container.model import penalties
from container.model.device_sampling import BELOW_ONE, PIECE, choose
from container.model.kernels import argmax
from container.model.shortlist import divisor, draw_short, largest, may_be_short, take_rows
from container.model.transfer import Arrivals, to_device

# Most nuclei lie within this many tokens, so that no more probabilities are added up.
NUCLEUS_PROBE = 1024
_MASK = (1 << 64) - 1


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on the seed and the token's index only.

    Two rounds of SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014); 53 bits are kept.
    """
    return (_mix(_mix(seed & _MASK) + index) >> 11) * 2.0**-53


@dataclass(frozen=True, slots=True)
class _Told:
    """Log-probabilities of some rows, [rows], and their most likely tokens, [rows, most]."""

    rows: list[int]
    picked: torch.Tensor
    ids: torch.Tensor
    values: torch.Tensor


class Drawn:
    """The next tokens, perhaps still being drawn. `token_ids` is [rows], where the logits are."""

    def __init__(
        self, token_ids: torch.Tensor, told: list[_Told], sequences: list[Sequence]
    ) -> None:
        self.token_ids = token_ids
        self._arrivals = Arrivals()
        self._ids = self._arrivals.start(token_ids)
        self._told = [
            _Told(one.rows, *map(self._arrivals.start, (one.picked, one.ids, one.values)))
            for one in told
        ]
        self._tops = [sequence.params.top_logprobs for sequence in sequences]
        self._arrivals.seal(token_ids.device)

    def read(self) -> list[Sampled]:
        """Wait for the tokens and what is told of them."""
        self._arrivals.wait()
        sampled = [Sampled(token_id) for token_id in self._ids.tolist()]
        for told in self._told:
            columns = (told.picked.tolist(), told.ids.tolist(), told.values.tolist())
            for row, picked, ids, values in zip(told.rows, *columns, strict=True):
                count = self._tops[row]
                top = tuple(zip(ids[:count], values[:count], strict=True))
                sampled[row] = Sampled(sampled[row].token_id, picked, top)
        return sampled


class Sampler:
    """Owns the token counts that penalties need; used by the runner only.

    `counts_prompt`: whether the context that TGI's penalties look at begins with the prompt, as it
    does unless an encoder reads that. `reads_logits`: whether tokens are picked on the host, which
    waits for the logits; else where the logits are, without waiting.
    """

    def __init__(
        self,
        end_token_ids: frozenset[int] = frozenset(),
        *,
        counts_prompt: bool = True,
        reads_logits: bool = True,
    ) -> None:
        self._end_token_ids = end_token_ids
        self._counts_prompt = counts_prompt
        self._reads_logits = reads_logits
        self._counts = penalties.TokenCounts()

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[Sampled]:
        """Pick a token for each row of logits [rows, vocabulary], float32; changes the logits."""
        return self.draw(logits, sequences).read()

    def draw(self, logits: torch.Tensor, sequences: list[Sequence]) -> Drawn:
        """Begin to pick a token for each row; changes the logits."""
        raw_rows = _rows(sequences, lambda p: p.logprobs is LogprobMode.RAW)
        raw = torch.log_softmax(take_rows(logits, raw_rows), -1) if raw_rows else None
        self._adjust(logits, sequences)
        token_ids = self._choose(logits, sequences)
        told = []
        if raw is not None:
            told.append(_tell(raw, raw_rows, token_ids, sequences))
        rows = _rows(sequences, lambda p: p.logprobs is LogprobMode.PROCESSED)
        if rows:
            processed = take_rows(logits, rows).log_softmax(-1)
            told.append(_tell(processed, rows, token_ids, sequences))
        return Drawn(token_ids, told, sequences)

    def _choose(self, logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
        if self._reads_logits:
            chosen = _choose(logits, sequences)
            return to_device(chosen, logits.device, torch.int64)
        rows = list(range(len(sequences)))
        return choose(logits, _params(sequences, rows), _numbers(sequences, rows))

    def _adjust(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        if _rows(sequences, lambda p: p.watermark is not None):
            penalties.watermark(logits, sequences)
        penalties.penalise(logits, sequences, self._counts, counts_prompt=self._counts_prompt)
        if _rows(sequences, lambda p: bool(p.logit_bias)):
            penalties.add_bias(logits, sequences)
        if _rows(sequences, lambda p: p.min_tokens > 0):
            penalties.hide_ends(logits, sequences, self._end_token_ids)
        rows = [row for row, sequence in enumerate(sequences) if sequence.constraint is not None]
        if rows:
            _constrain(logits, rows, sequences)


def _constrain(logits: torch.Tensor, rows: list[int], sequences: list[Sequence]) -> None:
    """Hide the tokens that grammars do not allow next, in rows that have one."""
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


def _tell(
    logprobs: torch.Tensor, rows: list[int], token_ids: torch.Tensor, sequences: list[Sequence]
) -> _Told:
    """The log-probability of each row's token and of the most likely ones."""
    most = max(sequences[row].params.top_logprobs for row in rows)
    best = logprobs.topk(most, -1)
    picked = logprobs.gather(-1, take_rows(token_ids, rows)[:, None])[:, 0]
    return _Told(rows, picked, best.indices, best.values)


def _mix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
