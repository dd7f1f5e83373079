"""The domain of a frontend: from a prompt and its params to text events. No HTTP, no dialect.

Limits are checked here, so that whatever is wrong with a request is raised before its first byte
of answer is sent.
"""

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from container.errors import InvalidParameter, PromptTooLong, Unavailable
from container.frontend.engine_client import EngineConnection, TokenStream
from container.messages import (
    EngineInfo,
    FinishReason,
    PromptFacts,
    SamplingParams,
    Status,
    TokenEvent,
)
from container.text.detokenizer import Detokenizer
from container.text.stop_strings import StopStrings
from container.text.tokenizer import Tokenizer

# How long an answer may wait for its first token before it is begun without one: until then a
# refusal by the engine can still have its own status code.
FIRST_EVENT_S = 10.0

LoadTokenizer = Callable[[EngineInfo], Tokenizer]
NOTHING_KNOWN = PromptFacts(queue_s=0.0, cached_tokens=0)


@dataclass(frozen=True, slots=True)
class FieldNames:
    """What a dialect calls the prompt and the number of new tokens, for its messages."""

    prompt: str
    max_new_tokens: str


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token as text, alone, with its log-probability where that was asked for."""

    token_id: int
    text: str
    logprob: float | None
    is_special: bool


@dataclass(frozen=True, slots=True)
class TextEvent:
    """One new token of a completion. `text` is what may be given out now: it may be empty, or
    more than the token's own when something was held back."""

    seq_index: int
    token: TokenText
    text: str
    finish_reason: FinishReason | None
    top: list[TokenText]


@dataclass(slots=True)
class Completion:
    """The text of one sequence, as far as it has come."""

    seq_index: int
    tokenizer: Tokenizer
    detokenizer: Detokenizer
    stops: StopStrings
    text: str = ""
    events: list[TextEvent] = field(default_factory=list)
    finish_reason: FinishReason | None = None

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
        shown = token_text(self.tokenizer, token.token_id, token.logprob)
        if not shown.is_special:
            shown = replace(shown, text=text)
        released, reason = self._stop(text, token.finish_reason)
        self.text += released
        self.finish_reason = reason
        top = [token_text(self.tokenizer, token_id, logprob) for token_id, logprob in token.top]
        event = TextEvent(self.seq_index, shown, released, reason, top)
        self.events.append(event)
        return event

    def _stop(self, text: str, reason: FinishReason | None) -> tuple[str, FinishReason | None]:
        if reason is FinishReason.STOP:
            return self.stops.flush(), reason  # a stop token gives no text
        if reason is not None:
            text += self.detokenizer.flush()
        released = self.stops.add(text)
        if released.is_stopped:
            return released.text, FinishReason.STOP
        if reason is not None:
            return released.text + self.stops.flush(), reason
        return released.text, None


@dataclass(frozen=True, slots=True)
class Times:
    """Where a finished request's time went, in seconds."""

    total_s: float
    validation_s: float
    queue_s: float
    inference_s: float
    first_token_s: float
    per_token_s: float


@dataclass(slots=True)
class RunningRequest:
    """A submitted request: its completions, and when things happened to it (monotonic seconds)."""

    prompt_ids: list[int]
    params: SamplingParams
    stream: TokenStream
    completions: list[Completion]
    received_at: float
    submitted_at: float
    prompt: PromptFacts = NOTHING_KNOWN
    first_token_at: float | None = None
    last_token_at: float | None = None
    _peeked: TextEvent | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far, over all completions."""
        return sum(completion.num_tokens for completion in self.completions)

    @property
    def is_finished(self) -> bool:
        """Whether every completion has ended and every event has been given."""
        return self._peeked is None and self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether every completion has ended."""
        return all(completion.finish_reason is not None for completion in self.completions)

    @property
    def times(self) -> Times:
        """Where the time went, once there is a token."""
        first = self.first_token_at or self.submitted_at
        last = self.last_token_at or first
        longest = max(completion.num_tokens for completion in self.completions)
        return Times(
            total_s=last - self.received_at,
            validation_s=self.submitted_at - self.received_at,
            queue_s=self.prompt.queue_s,
            inference_s=last - self.submitted_at - self.prompt.queue_s,
            first_token_s=first - self.received_at,
            per_token_s=(last - first) / max(1, longest - 1),
        )

    def await_first(self) -> None:
        """Wait a while for the first token. Raises what the engine answers instead of it."""
        self._peeked = self.next_event(FIRST_EVENT_S)

    def next_event(self, timeout_s: float) -> TextEvent | None:
        """Wait for the next token; None when the time is up. Raises what ended the request."""
        if self._peeked is not None:
            event, self._peeked = self._peeked, None
            return event
        token = self.stream.next_event(timeout_s)
        if token is None:
            return None
        self.last_token_at = time.monotonic()
        if self.first_token_at is None:
            self.first_token_at = self.last_token_at
        if token.prompt is not None and token.seq_index == 0:
            self.prompt = token.prompt
        event = self.completions[token.seq_index].take(token)
        if event.finish_reason is FinishReason.STOP:
            self.stream.close(token.seq_index)
        return event

    def close(self) -> None:
        """Say that nobody reads on."""
        self.stream.close()


def token_text(tokenizer: Tokenizer, token_id: int, logprob: float | None) -> TokenText:
    """Show a token alone."""
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    return TokenText(token_id, text, logprob, token_id in tokenizer.special_ids)


class Service:
    """Owns the tokenizer of this process and talks to the engine."""

    def __init__(self, engine: EngineConnection, load_tokenizer: LoadTokenizer) -> None:
        self._engine = engine
        self._load_tokenizer = load_tokenizer
        self._tokenizer: Tokenizer | None = None
        self._loaded_for = ""
        self.started_at = time.time()

    @property
    def status(self) -> Status:
        """The engine's state. Raises Unavailable when it is gone."""
        return self._engine.status

    @property
    def info(self) -> EngineInfo:
        """The loaded model. Raises Unavailable before it is loaded."""
        return self._ready()[0]

    @property
    def tokenizer(self) -> Tokenizer:
        """The loaded model's tokenizer. Raises Unavailable before it is loaded."""
        return self._ready()[1]

    def check_ready(self) -> None:
        """Raise Unavailable unless a request could be served now."""
        self._ready()

    def encode(
        self,
        text: str,
        names: FieldNames,
        *,
        add_special_tokens: bool = True,
        truncate: int | None = None,
    ) -> list[int]:
        """Turn a prompt into ids and check its length; `truncate` keeps the last ids.

        Raises InvalidParameter or PromptTooLong.
        """
        info, tokenizer = self._ready()
        ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
        if truncate is not None:
            ids = ids[-truncate:]
        if not ids:
            raise InvalidParameter(f"`{names.prompt}` cannot be empty", field=names.prompt)
        if len(ids) > info.max_input_tokens:
            raise PromptTooLong(
                f"`{names.prompt}` must have less than {info.max_input_tokens} tokens. "
                f"Given: {len(ids)}",
                field=names.prompt,
            )
        return ids

    def room_for(self, num_prompt_tokens: int, wanted: int | None, names: FieldNames) -> int:
        """How many new tokens a request may have; all that fit when it does not say.

        Raises PromptTooLong when it wants more than fit.
        """
        longest = self.info.max_total_tokens
        if wanted is None:
            return longest - num_prompt_tokens
        if num_prompt_tokens + wanted > longest:
            raise PromptTooLong(
                f"`{names.prompt}` tokens + `{names.max_new_tokens}` must be <= {longest}. Given: "
                f"{num_prompt_tokens} `{names.prompt}` tokens and {wanted} "
                f"`{names.max_new_tokens}`",
                field=names.max_new_tokens,
            )
        return wanted

    def start(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        stops: list[str],
        keep_stop: bool,
        received_at: float,
        num_sequences: int = 1,
    ) -> RunningRequest:
        """Submit and wait for the first token. Raises what the engine answers instead of it."""
        tokenizer = self.tokenizer
        completions = [
            Completion(
                seq_index,
                tokenizer,
                Detokenizer(tokenizer, prompt_ids),
                StopStrings(stops, keep_match=keep_stop),
            )
            for seq_index in range(num_sequences)
        ]
        submitted_at = time.monotonic()
        running = RunningRequest(
            prompt_ids,
            params,
            self._engine.submit(prompt_ids, params, num_sequences),
            completions,
            received_at,
            submitted_at,
        )
        try:
            running.await_first()
        except BaseException:
            running.close()
            raise
        return running

    def _ready(self) -> tuple[EngineInfo, Tokenizer]:
        status = self._engine.status
        if status.state == "draining":
            raise Unavailable(status.detail, retry_after_s=30)
        if status.info is None or status.state == "loading":
            raise Unavailable(f"the model is loading: {status.detail}", retry_after_s=5)
        if self._tokenizer is None or self._loaded_for != status.info.model_path:
            self._tokenizer = self._load_tokenizer(status.info)
            self._loaded_for = status.info.model_path
        return status.info, self._tokenizer


def random_seed() -> int:
    """A seed for a request that samples and names none."""
    return secrets.randbits(63)


def tokenizer_loader(*, trust_remote_code: bool) -> LoadTokenizer:
    """Make the function that loads a tokenizer from the folder that the engine names."""

    def load(info: EngineInfo) -> Tokenizer:
        return Tokenizer.from_folder(
            os.fspath(info.model_path), trust_remote_code=trust_remote_code
        )

    return load
