"""The fields that chat completions and completions share: sampling, streams, metadata."""

import secrets
from typing import Any

import msgspec
from pydantic import Field

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.apis.openai.structured_fields import StructuredFields
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.request_context import MIN_DEADLINE_S
from container.frontend.web.request_body import Body, Items
from container.messages.engine import LogprobMode, SamplingParams, random_seed

MAX_BAD_WORDS = 1000
MAX_WORD_CHARS = 1000
# The engine looks through them with every token.
MAX_STOP_TOKEN_IDS = 1000
MAX_PROMPT_LOGPROBS = 20  # vLLM's own limit


class StreamOptions(Body):
    """The options of a stream."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class SamplingFields(Body):
    """OpenAI's sampling fields, and those of other servers that its clients send as `extra_body`.

    Sampling is on unless `temperature` is 0.
    """

    model: str | None = Field(default=None, max_length=1000)
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | Items[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    min_tokens: int | None = None
    stop_token_ids: Items[int] | None = None
    ignore_eos: bool | None = False
    request_deadline: float | None = Field(default=None, ge=MIN_DEADLINE_S)
    allowed_token_ids: Items[int] | None = None
    bad_words: Items[str] | None = None
    include_stop_str_in_output: bool | None = False
    no_stop_trim: bool | None = False

    @property
    def stops(self) -> list[str]:
        """Stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def includes_stop(self) -> bool:
        """Whether a stop string stays in the text, by vLLM's name or by SGLang's."""
        return bool(self.include_stop_str_in_output or self.no_stop_trim)

    @property
    def includes_running_usage(self) -> bool:
        """Whether every chunk of a stream has the usage so far."""
        options = self.stream_options
        return self.includes_usage and bool(options and options.continuous_usage_stats)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def biases(self, vocabulary: int) -> dict[int, float]:
        """`logit_bias` with ids as numbers. Raises InvalidParameter for a key that is no id."""
        biases = {}
        for name, bias in (self.logit_bias or {}).items():
            is_id = name.isdecimal() and len(name) < 12 and int(name) < vocabulary
            require(is_id, "logit_bias", f"has the key {name[:20]!r}, which is not a token id")
            within(bias, "logit_bias", -100, 100)
            biases[int(name)] = bias
        return biases

    def params(
        self,
        max_new_tokens: int,
        vocabulary: int,
        *,
        top_logprobs: int | None,
        grammar: str,
        bad_words: list[list[int]] | None = None,
    ) -> SamplingParams:
        """The engine's parameters; `top_logprobs` None asks for no log-probabilities.

        `bad_words` are the ids of those words.
        """
        temperature = 1.0 if self.temperature is None else self.temperature
        common = SamplingParams(
            max_new_tokens,
            repetition_penalty=self.repetition_penalty or 1.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=self.biases(vocabulary),
            min_tokens=self.min_tokens or 0,
            stop_token_ids=self.stop_token_ids or [],
            ignore_eos=bool(self.ignore_eos),
            allowed_token_ids=self.allowed_token_ids or [],
            bad_words=bad_words or [],
            logprobs=LogprobMode.NONE if top_logprobs is None else LogprobMode.RAW,
            top_logprobs=top_logprobs or 0,
            grammar=grammar,
        )
        if temperature == 0.0:
            return common
        return msgspec.structs.replace(
            common,
            temperature=temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            seed=random_seed() if self.seed is None else self.seed,
        )


def check_sampling(fields: SamplingFields, limits: RequestLimits, vocabulary: int) -> None:
    """Check ranges. Raises InvalidParameter."""
    f = fields
    within(f.temperature, "temperature", 0, None)
    require(f.top_p is None or 0 < f.top_p <= 1, "top_p", "must be > 0.0 and <= 1.0")
    within(f.top_k, "top_k", 1, 2**31 - 1)
    within(f.min_p, "min_p", 0, 1)
    within(f.max_tokens, "max_tokens", 1, None)
    within(f.min_tokens, "min_tokens", 0, 2**31 - 1)
    within(f.n, "n", 1, limits.max_sequences)
    within(f.frequency_penalty, "frequency_penalty", -2, 2)
    within(f.presence_penalty, "presence_penalty", -2, 2)
    is_positive = f.repetition_penalty is None or f.repetition_penalty > 0
    require(is_positive, "repetition_penalty", "must be above 0")
    within(f.seed, "seed", -(2**63), 2**63 - 1)
    require(
        len(f.stops) <= limits.max_stops,
        "stop",
        f"supports up to {limits.max_stops} stop sequences. Given: {len(f.stops)}",
    )
    require(all(f.stops), "stop", "must not contain an empty string")
    for name, limit in (
        ("stop_token_ids", MAX_STOP_TOKEN_IDS), ("allowed_token_ids", vocabulary)
    ):  # fmt: skip
        ids = getattr(f, name) or [0]
        require(len(ids) <= limit, name, f"has {len(ids)} ids; the limit is {limit}")
        within(min(ids), name, 0, vocabulary - 1)
        within(max(ids), name, 0, vocabulary - 1)
    count = len(f.logit_bias or {})
    require(count <= vocabulary, "logit_bias", f"has {count} ids; the limit is {vocabulary}")
    require(f.allowed_token_ids != [], "allowed_token_ids", "must not be an empty list")
    count = len(f.bad_words or [])
    require(count <= MAX_BAD_WORDS, "bad_words", f"has {count} words; the limit is {MAX_BAD_WORDS}")
    require(all(f.bad_words or []), "bad_words", "must not contain an empty string")
    longest = max(map(len, f.bad_words or [""]))
    require(
        longest <= MAX_WORD_CHARS,
        "bad_words",
        f"has a word of {longest} characters; the limit is {MAX_WORD_CHARS}",
    )
    require(f.stream_options is None or bool(f.stream), "stream_options", "needs `stream`: true")
    f.biases(vocabulary)


class GenerationFields(SamplingFields, StructuredFields):
    """The other fields that chat completions and completions share, most of them vLLM's.

    `adapter_id` is TGI's name, `lora_path` SGLang's; `request_id` is vLLM's, `rid` SGLang's.
    """

    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = False
    return_tokens_as_token_ids: bool | None = False
    adapter_id: str | None = None
    lora_path: str | None = None
    request_id: str | None = Field(default=None, max_length=200)
    rid: str | None = Field(default=None, max_length=200)

    def name(self, prefix: str) -> str:
        """The id of an answer: the request's own, or a new one."""
        own = self.request_id or self.rid
        return f"{prefix}-{own or secrets.token_hex(12)}"


def check_generation(fields: GenerationFields, limits: RequestLimits, vocabulary: int) -> None:
    """Check ranges. Raises InvalidParameter."""
    f = fields
    check_sampling(f, limits, vocabulary)
    cut = f.truncate_prompt_tokens
    is_length = cut is None or cut == -1 or cut >= 1
    require(is_length, "truncate_prompt_tokens", f"must be -1 or >= 1. Given: {cut}")
    within(f.prompt_logprobs, "prompt_logprobs", 0, MAX_PROMPT_LOGPROBS)
    require(f.prompt_logprobs is None or not f.stream, "prompt_logprobs", "excludes `stream`: true")
    both = f.adapter_id and f.lora_path and f.adapter_id != f.lora_path
    require(not both, "lora_path", "and `adapter_id` name two adapters")


def with_prompt_logprobs(params: SamplingParams, top: int | None) -> SamplingParams:
    """Ask for the log-probabilities of the prompt's tokens, and of the `top` most likely ones."""
    if top is None:
        return params
    return msgspec.structs.replace(params, prompt_logprobs=True, prompt_top_logprobs=top)


def refuse(body: Body, not_offered: dict[str, tuple[Any, ...]]) -> None:
    """Raise UnsupportedParameter for a field that has none of the values that mean "off"."""
    for name, neutral in not_offered.items():
        if getattr(body, name) not in neutral:
            raise UnsupportedParameter(f"`{name}` is not supported by this server", field=name)


def require(holds: bool, name: str, requirement: str) -> None:
    """Raise InvalidParameter unless a requirement holds."""
    if not holds:
        raise InvalidParameter(f"`{name}` {requirement}", field=name)


def within(value: float | None, name: str, minimum: float | None, maximum: float | None) -> None:
    """Raise InvalidParameter for a value outside of its limits, both included."""
    if value is None:
        return
    if minimum is not None:
        require(value >= minimum, name, f"must be >= {minimum}. Given: {value}")
    if maximum is not None:
        require(value <= maximum, name, f"must be <= {maximum}. Given: {value}")
