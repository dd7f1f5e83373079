"""The sampler: the next token of each row of logits, vectorised over the batch.

A feature that no row uses costs nothing. Randomness is a number in [0, 1) computed from a row's
seed and its token's index alone (never drawn from a generator), which picks a token by inverse
transform; so a request with a seed gets the same tokens whatever runs beside it.
"""

import torch

from container.engine.batch import Sampled
from container.engine.sequence import Sequence
from container.messages import LogprobMode, SamplingParams

# Rows whose top_p mass lies within this many tokens need no full sort of the vocabulary.
NUCLEUS_PROBE = 1024
_MASK = (1 << 64) - 1


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on the seed and the token's index only.

    Two rounds of SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014); 53 bits are kept.
    """
    return (_mix(_mix(seed & _MASK) + index) >> 11) * 2.0**-53


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[Sampled]:
    """Pick a token for each row of logits [rows, vocabulary], float32; may change the logits."""
    raw_rows = _rows_with(sequences, LogprobMode.RAW)
    raw = torch.log_softmax(logits[raw_rows], -1) if raw_rows else None
    greedy = all(sequence.params.is_greedy for sequence in sequences)
    if not greedy:
        _warp(logits, sequences)
    chosen = logits.argmax(-1) if greedy else _draw(logits, sequences)
    token_ids = chosen.tolist()
    logprobs: dict[int, float] = {}
    if raw is not None:
        logprobs |= _pick(raw, raw_rows, token_ids)
    rows = _rows_with(sequences, LogprobMode.PROCESSED)
    if rows:
        logprobs |= _pick(torch.log_softmax(logits[rows], -1), rows, token_ids)
    return [Sampled(token_id, logprobs.get(row)) for row, token_id in enumerate(token_ids)]


def _warp(logits: torch.Tensor, sequences: list[Sequence]) -> None:
    """Apply temperature, then top_k, then top_p, in place; greedy rows keep their logits."""
    params = [sequence.params for sequence in sequences]
    temperatures = torch.tensor([_divisor(p) for p in params], device=logits.device)
    logits.div_(temperatures[:, None])
    vocabulary = logits.shape[-1]
    for row, p in enumerate(params):
        if 0 < p.top_k < vocabulary and not p.is_greedy:
            worst = logits[row].topk(p.top_k).values[-1]
            logits[row].masked_fill_(logits[row] < worst, float("-inf"))
    rows = [row for row, p in enumerate(params) if p.top_p < 1.0 and not p.is_greedy]
    if rows:
        _keep_nucleus(logits, rows, [params[row].top_p for row in rows])


def _divisor(params: SamplingParams) -> float:
    # Below this the quotient could overflow, and the most likely token has all the mass anyway.
    return 1.0 if params.is_greedy else max(params.temperature, 1e-6)


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


def _draw(logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
    """Take the argmax of greedy rows, and invert the others' cumulative distribution."""
    chosen = logits.argmax(-1)
    rows = [row for row, sequence in enumerate(sequences) if not sequence.params.is_greedy]
    numbers = [uniform(sequences[row].params.seed, sequences[row].completion_len) for row in rows]
    index = torch.tensor(rows, device=logits.device)
    probabilities = logits.index_select(0, index).softmax(-1)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    u = torch.tensor(numbers, device=logits.device, dtype=torch.float64)[:, None]
    # Strictly greater than u * total: a token of probability 0 is never picked.
    drawn = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0]
    drawn = drawn.clamp_(max=logits.shape[-1] - 1)
    return chosen.index_copy_(0, index, drawn)


def _rows_with(sequences: list[Sequence], mode: LogprobMode) -> list[int]:
    return [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is mode]


def _pick(logprobs: torch.Tensor, rows: list[int], token_ids: list[int]) -> dict[int, float]:
    wanted = torch.tensor([token_ids[row] for row in rows], device=logprobs.device)
    picked = logprobs.gather(-1, wanted[:, None])[:, 0].tolist()
    return dict(zip(rows, picked, strict=True))


def _mix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
