"""The domain of a frontend: from a prompt and its params to text events. No HTTP, no dialect.

Limits are checked here, so that whatever is wrong with a request is raised before its first byte
of answer is sent.
"""

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from container.errors import InvalidParameter, PromptTooLong, Unavailable
from container.frontend.engine_client import EngineConnection, TokenStream
from container.messages import EngineInfo, FinishReason, SamplingParams, Status, TokenEvent
from container.text.detokenizer import Detokenizer
from container.text.stop_strings import StopStrings
from container.text.tokenizer import Tokenizer

# How long an answer may wait for its first token before it is begun without one: until then a
# refusal by the engine can still have its own status code.
FIRST_EVENT_S = 10.0

LoadTokenizer = Callable[[EngineInfo], Tokenizer]


@dataclass(frozen=True, slots=True)
class FieldNames:
    """What a dialect calls the prompt and the number of new tokens, for its messages."""

    prompt: str
    max_new_tokens: str


@dataclass(frozen=True, slots=True)
class TextEvent:
    """One token as text. `text` is what may be given out now: it may be empty, or more than the
    token's own when something was held back. `token_text` is the token alone."""

    token_id: int
    token_text: str
    text: str
    is_special: bool
    logprob: float | None
    finish_reason: FinishReason | None


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
class Completion:
    """What has been generated for one request, and its times in seconds."""

    prompt_tokens: int
    params: SamplingParams
    stream: TokenStream
    detokenizer: Detokenizer
    stops: StopStrings
    tokenizer: Tokenizer
    received_at: float
    submitted_at: float
    text: str = ""
    events: list[TextEvent] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    queue_s: float = 0.0
    first_token_at: float | None = None
    last_token_at: float | None = None
    _peeked: TextEvent | None = None

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.events)

    @property
    def times(self) -> Times:
        """Where the time went, once there is a token."""
        first = self.first_token_at or self.submitted_at
        last = self.last_token_at or first
        return Times(
            total_s=last - self.received_at,
            validation_s=self.submitted_at - self.received_at,
            queue_s=self.queue_s,
            inference_s=last - self.submitted_at - self.queue_s,
            first_token_s=first - self.received_at,
            per_token_s=(last - first) / max(1, self.completion_tokens - 1),
        )

    @property
    def has_peeked(self) -> bool:
        """Whether `await_first` got a token that `next_event` has not given yet."""
        return self._peeked is not None

    def await_first(self) -> None:
        """Wait a while for the first token. Raises what the engine answers instead of it."""
        self._peeked = self.next_event(FIRST_EVENT_S)

    def next_event(self, timeout_s: float) -> TextEvent | None:
        """Wait for the next token; None when the time is up. Raises what ended the request."""
        if self._peeked is not None:
            event, self._peeked = self._peeked, None
            return event
        token = self.stream.next_event(timeout_s)
        return self._take(token) if token is not None else None

    def close(self) -> None:
        """Say that nobody reads on."""
        self.stream.close()

    def _take(self, token: TokenEvent) -> TextEvent:
        now = time.monotonic()
        if self.first_token_at is None:
            self.first_token_at = now
            self.queue_s = token.queue_s or 0.0
        self.last_token_at = now
        is_special = token.token_id in self.tokenizer.special_ids
        new_text = self.detokenizer.add(token.token_id)
        token_text = new_text
        if is_special:
            token_text = self.tokenizer.decode([token.token_id], skip_special_tokens=False)
        text, reason = self._stop(new_text, token.finish_reason)
        self.text += text
        event = TextEvent(token.token_id, token_text, text, is_special, token.logprob, reason)
        self.events.append(event)
        self.finish_reason = reason
        return event

    def _stop(self, text: str, reason: FinishReason | None) -> tuple[str, FinishReason | None]:
        if reason is not None:
            text += self.detokenizer.flush()
        released = self.stops.add(text)
        if released.is_stopped:
            self.stream.close()
            return released.text, FinishReason.STOP
        if reason is not None:
            return released.text + self.stops.flush(), reason
        return released.text, None


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
    ) -> Completion:
        """Submit and wait for the first token. Raises what the engine answers instead of it."""
        tokenizer = self.tokenizer
        now = time.monotonic()
        completion = Completion(
            prompt_tokens=len(prompt_ids),
            params=params,
            stream=self._engine.submit(prompt_ids, params),
            detokenizer=Detokenizer(tokenizer, prompt_ids),
            stops=StopStrings(stops, keep_match=keep_stop),
            tokenizer=tokenizer,
            received_at=received_at,
            submitted_at=now,
        )
        try:
            completion.await_first()
        except BaseException:
            completion.close()
            raise
        return completion

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
