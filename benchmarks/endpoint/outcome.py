"""The outcome of one request, and the statistics of a level of load. Times are in seconds."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.report.figures import percentile

PERCENTS = (50, 90, 99)


@dataclass(slots=True)
class Outcome:
    """One request. Times count from the start of its level.

    `due_at` is when it should have been sent: with arrivals that do not wait for answers, a client
    that falls behind must not hide the wait. `tokens` is the server's count, else the number of
    pieces that had text.
    """

    due_at: float
    sent_at: float
    piece_at: list[float] = field(default_factory=list)
    ended_at: float = 0.0
    tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    error: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether the request was answered with text."""
        return not self.error and bool(self.piece_at)

    @property
    def first_token_s(self) -> float:
        """Time to the first token."""
        return self.piece_at[0] - self.due_at

    @property
    def whole_s(self) -> float:
        """Time to the end of the answer."""
        return self.ended_at - self.due_at

    @property
    def per_token_s(self) -> float:
        """Mean time from one token to the next; 0 for a single token."""
        return (self.piece_at[-1] - self.piece_at[0]) / max(1, self.tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Times between neighbouring pieces of the stream."""
        return [b - a for a, b in zip(self.piece_at, self.piece_at[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Goal:
    """The times that a good answer keeps, in ms; None for any."""

    first_token: float | None = None
    per_token: float | None = None
    whole: float | None = None

    def is_met(self, outcome: Outcome) -> bool:
        """Whether an answer keeps all of them."""
        if not outcome.is_ok:
            return False
        times = (outcome.first_token_s, outcome.per_token_s, outcome.whole_s)
        limits = (self.first_token, self.per_token, self.whole)
        return all(
            limit is None or 1000 * time <= limit for time, limit in zip(times, limits, strict=True)
        )

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return any(limit is not None for limit in asdict(self).values())


def read_goal(text: str) -> Goal:
    """Read `first_token=500,per_token=50,whole=9000`. Raises ValueError."""
    limits: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name.strip() not in Goal.__dataclass_fields__:
            names = ", ".join(Goal.__dataclass_fields__)
            raise ValueError(f"{name!r} is no time of a goal; these are: {names}")
        limits[name.strip()] = float(value)
    return Goal(**limits)


def summarise(
    outcomes: Sequence[Outcome], wall_s: float, goal: Goal, price: float | None
) -> dict[str, Any]:
    """Return the figures of a level; `price` is in dollars an hour."""
    good = [outcome for outcome in outcomes if outcome.is_ok]
    tokens = sum(outcome.tokens for outcome in good)
    wall_s = max(wall_s, 1e-9)
    figures: dict[str, Any] = {
        "requests": len(outcomes),
        "failed": len(outcomes) - len(good),
        "errors": dict(Counter(outcome.error for outcome in outcomes if not outcome.is_ok)),
        "wall_s": round(wall_s, 3),
        "requests_per_s": round(len(good) / wall_s, 4),
        "output_tokens": tokens,
        "output_tokens_per_s": round(tokens / wall_s, 3),
        "prompt_tokens": sum(outcome.prompt_tokens or 0 for outcome in good),
        "cached_tokens": sum(outcome.cached_tokens or 0 for outcome in good),
        "first_token_ms": spread(outcome.first_token_s for outcome in good),
        "between_tokens_ms": spread(gap for outcome in good for gap in outcome.gaps_s),
        "per_token_ms": spread(outcome.per_token_s for outcome in good if outcome.tokens > 1),
        "whole_ms": spread(outcome.whole_s for outcome in good),
    }
    if goal.is_set:
        kept = sum(map(goal.is_met, outcomes))
        figures["goodput"] = {
            "requests_per_s": round(kept / wall_s, 4),
            "share": round(kept / max(1, len(outcomes)), 4),
        }
    if price:
        figures["cost"] = {
            "tokens_per_s_per_dollar_an_hour": round(tokens / wall_s / price, 3),
            "tokens_per_dollar": round(tokens / wall_s * 3600 / price),
            "dollars_per_million_tokens": round(price * wall_s / 3600 / tokens * 1e6, 4)
            if tokens
            else None,
        }
    return figures


def spread(times_s: Iterable[float]) -> dict[str, float]:
    """Return count, mean, percentiles and maximum of some times, in ms."""
    ordered = sorted(times_s)
    if not ordered:
        return {"count": 0}
    milliseconds = {f"p{percent}": percentile(ordered, percent) for percent in PERCENTS}
    milliseconds |= {"mean": sum(ordered) / len(ordered), "max": ordered[-1]}
    return {"count": len(ordered)} | {
        name: round(1000 * seconds, 3) for name, seconds in milliseconds.items()
    }
