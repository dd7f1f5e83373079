"""Prompt lookup: guesses the next tokens from what a sequence has said before.

Text repeats itself: names, code, quotations of the prompt. Where the last few tokens stand earlier
in the sequence, what followed them there is the guess (Saxena, prompt lookup decoding, 2023). A
wrong guess costs a few rows of a step and never changes a token.
"""

# Fewer tokens in common than this say too little; more than the longest are not looked at.
SHORTEST, LONGEST = 2, 4


class NgramProposer:
    """Where each run of tokens of one sequence was last followed by something; grows with it."""

    def __init__(self) -> None:
        self._followed_at: dict[tuple[int, ...], int] = {}
        self._known = 0

    def propose(self, token_ids: list[int], count: int) -> tuple[int, ...]:
        """At most `count` tokens that may come next; none where nothing repeats."""
        self._learn(token_ids)
        for length in range(min(LONGEST, len(token_ids)), SHORTEST - 1, -1):
            position = self._followed_at.get(tuple(token_ids[-length:]))
            if position is not None:
                period = len(token_ids) - position
                # A guess that reaches the end of what is known goes on with itself.
                return tuple(token_ids[position + index % period] for index in range(count))
        return ()

    def _learn(self, token_ids: list[int]) -> None:
        for position in range(self._known, len(token_ids)):
            for length in range(SHORTEST, min(LONGEST, position) + 1):
                self._followed_at[tuple(token_ids[position - length : position])] = position
        self._known = len(token_ids)
