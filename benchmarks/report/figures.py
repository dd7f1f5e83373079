"""The results of a round and their statistics. Times are in seconds, shown in ms."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "ours"


@dataclass(frozen=True, slots=True)
class Stream:
    """One request: when it was sent, when each token came, and how long its prompt really was."""

    sent_at: float
    token_at: list[float]
    prompt_tokens: int | None

    @property
    def first_token_s(self) -> float:
        """Time to the first token."""
        return self.token_at[0] - self.sent_at

    @property
    def gaps_s(self) -> list[float]:
        """Times between neighbouring tokens."""
        return [b - a for a, b in zip(self.token_at, self.token_at[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Round:
    """One side's run of one level; `cores` says who used the processors meanwhile."""

    streams: list[Stream]
    pings_s: list[float] = field(default_factory=list)
    failed_pings: int = 0
    cores: dict[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Generated tokens, all streams together."""
        return sum(len(stream.token_at) for stream in self.streams)

    @property
    def wall_s(self) -> float:
        """From the first send to the last token."""
        first = min(stream.sent_at for stream in self.streams)
        return max(stream.token_at[-1] for stream in self.streams) - first

    @property
    def first_token_s(self) -> float:
        """Median time to the first token."""
        return statistics.median(stream.first_token_s for stream in self.streams)

    @property
    def tokens_per_s(self) -> float:
        """Whole-run throughput: prompts are part of the time, not of the tokens."""
        return self.tokens / self.wall_s

    def as_dict(self) -> dict[str, Any]:
        """This round's own figures, for the JSON."""
        return {
            "tokens": self.tokens,
            "wall_s": round(self.wall_s, 3),
            "tokens_per_s": round(self.tokens_per_s, 2),
            "cores": {name: round(used, 3) for name, used in self.cores.items()},
        }


@dataclass(slots=True)
class Level:
    """All rounds of one number of clients, by side; the first side is ours."""

    clients: int
    sides: dict[str, list[Round]]
    repeated: int = 0

    def add(self, turn: dict[str, Round]) -> None:
        """Take over a round of each side, run one after another."""
        for side, round_ in turn.items():
            self.sides[side].append(round_)

    @property
    def peers(self) -> list[str]:
        """All sides but ours."""
        return list(self.sides)[1:]

    def ratios(self, peer: str) -> list[float]:
        """Our throughput over a peer's, turn by turn."""
        pairs = zip(self.sides[OURS], self.sides[peer], strict=True)
        return [ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in pairs]

    def first_token_ratios(self, peer: str) -> list[float]:
        """A peer's median time to the first token over ours; above 1 we are faster."""
        pairs = zip(self.sides[OURS], self.sides[peer], strict=True)
        return [theirs.first_token_s / ours.first_token_s for ours, theirs in pairs]

    def as_dict(self) -> dict[str, Any]:
        """The level's figures, for the JSON."""
        return {
            "clients": self.clients,
            "repeated": self.repeated,
            "sides": {side: summary(rounds) for side, rounds in self.sides.items()},
            "ours_over": {peer: spans(self.ratios(peer)) for peer in self.peers},
            "first_token_over_ours": {
                peer: spans(self.first_token_ratios(peer)) for peer in self.peers
            },
        }


def spans(ratios: list[float]) -> dict[str, float]:
    """The least, the middle and the largest of some ratios."""
    kinds = {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}
    return {name: round(ratio, 3) for name, ratio in kinds.items()}


def summary(rounds: list[Round]) -> dict[str, Any]:
    """Pool the latencies of all rounds; take the median of their throughputs."""
    streams = [stream for round_ in rounds for stream in round_.streams]
    pings = [ping for round_ in rounds for ping in round_.pings_s]
    return {
        "tokens_per_s_median": round(median_throughput(rounds), 2),
        "first_token_ms": spread([stream.first_token_s for stream in streams]),
        "between_tokens_ms": spread([gap for stream in streams for gap in stream.gaps_s]),
        "ping_ms": spread(pings) if pings else None,
        "failed_pings": sum(round_.failed_pings for round_ in rounds),
        "prompt_tokens": sorted({stream.prompt_tokens or 0 for stream in streams}),
        "new_tokens": sorted({len(stream.token_at) for stream in streams}),
        "rounds": [round_.as_dict() for round_ in rounds],
    }


def median_throughput(rounds: list[Round]) -> float:
    """Tokens a second of the round in the middle."""
    return statistics.median(round_.tokens_per_s for round_ in rounds)


def spread(times_s: Sequence[float]) -> dict[str, float]:
    """Count, middle, tail and end of some times, in ms."""
    ordered = sorted(times_s) or [0.0]
    return {
        "count": len(times_s),
        "p50": _ms(percentile(ordered, 50)),
        "p99": _ms(percentile(ordered, 99)),
        "max": _ms(ordered[-1]),
    }


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value at or below which `percent` of the values lie; always one that was measured."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
