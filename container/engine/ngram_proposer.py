"""N-gram drafts: propose the tokens that followed the last n-gram earlier in the sequence.

Text repeats itself: names, code, quotations of the prompt. If the last few tokens occur earlier in
the sequence, the tokens that followed them there are the draft (Saxena, prompt lookup decoding,
2023). A rejected draft costs a few rows of a step and never changes a token.
"""

# Shorter n-grams predict too little; longer ones are not matched.
SHORTEST, LONGEST = 2, 4


class NgramProposer:
    """Indexes the n-grams of one sequence by the position after their last occurrence."""

    def __init__(self) -> None:
        self._followed_at: dict[tuple[int, ...], int] = {}
        self._known = 0

    def propose(self, token_ids: list[int], count: int) -> tuple[int, ...]:
        """Propose `count` draft tokens; none if no n-gram at the end repeats."""
        self._learn(token_ids)
        for length in range(min(LONGEST, len(token_ids)), SHORTEST - 1, -1):
            position = self._followed_at.get(tuple(token_ids[-length:]))
            if position is not None:
                period = len(token_ids) - position
                # A draft that reaches the end of the sequence repeats its own tokens.
                return tuple(token_ids[position + index % period] for index in range(count))
        return ()

    def _learn(self, token_ids: list[int]) -> None:
        for position in range(self._known, len(token_ids)):
            for length in range(SHORTEST, min(LONGEST, position) + 1):
                self._followed_at[tuple(token_ids[position - length : position])] = position
        self._known = len(token_ids)
