"""Compares two sides' answers to the same questions: scores, agreement and whether it is noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# A difference that chance gives more rarely than this is no noise.
SIGNIFICANCE = 0.05
Z_95 = 1.96
SAME = "same within noise"
WORSE = "worse than the reference"
BETTER = "better than the reference"


@dataclass(frozen=True, slots=True)
class Agreement:
    """Counts of one set of questions, by whether each side was right."""

    num_questions: int
    num_right: int
    num_reference_right: int
    only_ours: int  # right here, wrong in the reference
    only_reference: int
    num_identical: int

    @property
    def score(self) -> float:
        """Share of questions that our side answered right."""
        return self.num_right / self.num_questions

    @property
    def reference_score(self) -> float:
        """Share of questions that the reference answered right."""
        return self.num_reference_right / self.num_questions

    @property
    def same_verdict(self) -> float:
        """Share of questions that both sides got right or both got wrong."""
        return 1 - (self.only_ours + self.only_reference) / self.num_questions

    @property
    def identical(self) -> float:
        """Share of questions with exactly the same text."""
        return self.num_identical / self.num_questions

    @property
    def p_value(self) -> float:
        """Chance of a split of the discordant questions as uneven as this (McNemar, exact)."""
        return binomial_p_value(self.only_ours, self.only_ours + self.only_reference)

    @property
    def difference(self) -> tuple[float, float]:
        """Bounds of the difference of scores, with 95 % confidence (Wald, of paired answers)."""
        total, gap = self.num_questions, self.only_ours - self.only_reference
        discordant = self.only_ours + self.only_reference
        margin = Z_95 * math.sqrt(max(0.0, discordant - gap * gap / total)) / total
        return gap / total - margin, gap / total + margin

    @property
    def verdict(self) -> str:
        """Say whether the sides differ by more than chance explains."""
        if self.p_value >= SIGNIFICANCE:
            return SAME
        return BETTER if self.only_ours > self.only_reference else WORSE


def compare(
    is_right: Sequence[bool], is_reference_right: Sequence[bool], is_identical: Sequence[bool]
) -> Agreement:
    """Count a set of questions; the three sequences are in the same order."""
    pairs = list(zip(is_right, is_reference_right, strict=True))
    return Agreement(
        len(pairs),
        sum(is_right),
        sum(is_reference_right),
        pairs.count((True, False)),
        pairs.count((False, True)),
        sum(is_identical),
    )


def binomial_p_value(successes: int, trials: int) -> float:
    """Two-sided exact test of a fair coin."""
    fewer = min(successes, trials - successes)
    tail = sum(math.comb(trials, k) for k in range(fewer + 1)) / 2**trials
    return min(1.0, 2 * tail)


def score_interval(right: int, total: int) -> tuple[float, float]:
    """Bounds of one side's score, with 95 % confidence (Wilson)."""
    share, z2 = right / total, Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    margin = Z_95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return max(0.0, centre - margin), min(1.0, centre + margin)
