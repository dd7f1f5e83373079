"""Completions: from token events to the text of one sequence.

A frontend's domain objects; no HTTP, no dialect. One greenlet, the request's own, uses each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from container.frontend.generation.offloading import in_pieces
from container.messages.engine import FinishReason, TokenEvent
from container.text.detokenizer import Detokenizer
from container.text.stop_strings import StopStrings
from container.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token as text, alone, with its log-probability if the request asks for it."""

    token_id: int
    text: str
    logprob: float | None
    is_special: bool


@dataclass(frozen=True, slots=True)
class TextEvent:
    """One new token of a completion, or its end at the deadline (`is_cut`).

    `text` is the text to send now: empty while it is buffered, and more than the token's own when
    the buffer is released. The token of a cut is a special one that the model has not generated.
    """

    seq_index: int
    token: TokenText
    text: str
    finish_reason: FinishReason | None
    top: list[TokenText]
    is_cut: bool = False


@dataclass(slots=True)
class Completion:
    """The text of one sequence so far; `stop_string` is the one that ended it.

    `events` has one entry for each token; `end` is the cut, if the deadline ended it.
    """

    seq_index: int
    tokenizer: Tokenizer
    detokenizer: Detokenizer
    stops: StopStrings
    text: str = ""
    events: list[TextEvent] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_string: str | None = None
    end: TextEvent | None = None

    @property
    def all_events(self) -> list[TextEvent]:
        """The events of its tokens, and the cut, if the deadline ended it."""
        return self.events if self.end is None else [*self.events, self.end]

    @property
    def num_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.events)

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of its tokens."""
        return sum(event.token.logprob or 0.0 for event in self.events) / max(1, self.num_tokens)

    def take(self, token: TokenEvent) -> TextEvent:
        """Turn the next token into text."""
        text = self.detokenizer.add(token.token_id)
        token_shown = token_text(self.tokenizer, token.token_id, token.logprob)
        if not token_shown.is_special:
            token_shown = replace(token_shown, text=text)
        released, reason = self._stop(text, token.finish_reason)
        self.text += released
        self.finish_reason = reason
        top = [token_text(self.tokenizer, token_id, logprob) for token_id, logprob in token.top]
        event = TextEvent(self.seq_index, token_shown, released, reason, top)
        self.events.append(event)
        return event

    def cut(self) -> TextEvent:
        """End the completion at its deadline."""
        released, reason = self._stop("", FinishReason.DEADLINE)
        self.text += released
        self.finish_reason = reason
        token_id = min(self.tokenizer.special_ids, default=0)
        token = TokenText(token_id, released, None, is_special=not released)
        self.end = TextEvent(self.seq_index, token, released, reason, [], is_cut=True)
        return self.end

    def _stop(self, text: str, reason: FinishReason | None) -> tuple[str, FinishReason | None]:
        if reason is FinishReason.STOP:
            return self.stops.flush(), reason  # a stop token gives no text
        if reason is not None:
            text += self.detokenizer.flush()
        released = self.stops.add(text)
        if released.is_stopped:
            self.stop_string = released.stop
            return released.text, FinishReason.STOP
        if reason is not None:
            return released.text + self.stops.flush(), reason
        return released.text, None


def token_text(tokenizer: Tokenizer, token_id: int, logprob: float | None) -> TokenText:
    """Decode a token alone."""
    return TokenText(
        token_id, tokenizer.text_of(token_id), logprob, token_id in tokenizer.special_ids
    )


def prompt_tokens(
    prompt_ids: list[int], logprobs: list[float], tokenizer: Tokenizer
) -> list[TokenText]:
    """Decode the tokens of a prompt, all but the first with a log-probability.

    `logprobs` is empty if the deadline came before the first token.
    """
    rest: Sequence[float | None] = logprobs or [None] * (len(prompt_ids) - 1)
    pairs = zip(prompt_ids, [None, *rest], strict=True)
    return [token_text(tokenizer, *pair) for pair in in_pieces(pairs)]
