"""Random numbers for sampling: a function of a request's seed and a token's index."""

from container.engine.sequence import Sequence
from container.messages.engine import SamplingParams

_MASK = (1 << 64) - 1


def uniform(seed: int, index: int) -> float:
    """Return a number in [0, 1) that depends on the seed and the token's index only.

    Two rounds of SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014), rounded to 53 bits.
    """
    return (_mix(_mix(seed & _MASK) + index) >> 11) * 2.0**-53


def row_numbers(sequences: list[Sequence], rows: list[int]) -> list[float]:
    """Return the number in [0, 1) that picks each row's token."""
    return [uniform(sequences[row].seed, sequences[row].completion_len) for row in rows]


def _mix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def divisor(params: SamplingParams) -> float:
    """Clamp the temperature, only so that dividing by it cannot overflow."""
    return min(max(params.temperature, 1e-6), 1e6)
