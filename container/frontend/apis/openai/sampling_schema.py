"""What chat completions and completions have in common: how tokens are picked."""

from typing import Any

import msgspec
from pydantic import Field

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.service import random_seed
from container.frontend.web.request_body import Body
from container.messages.engine import LogprobMode, SamplingParams


class StreamOptions(Body):
    """What a stream adds."""

    include_usage: bool | None = False


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
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = False
    response_format: dict[str, Any] | None = None

    @property
    def stops(self) -> list[str]:
        """Stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def biases(self, vocabulary: int) -> dict[int, float]:
        """`logit_bias` with ids as numbers. Raises InvalidParameter for what is no id."""
        biases = {}
        for name, bias in (self.logit_bias or {}).items():
            is_id = name.isdecimal() and len(name) < 12 and int(name) < vocabulary
            require(is_id, "logit_bias", f"has the key {name[:20]!r}, which is not a token id")
            within(bias, "logit_bias", -100, 100)
            biases[int(name)] = bias
        return biases

    def params(
        self, max_new_tokens: int, vocabulary: int, *, top_logprobs: int | None, grammar: str
    ) -> SamplingParams:
        """The engine's parameters; `top_logprobs` None asks for no log-probabilities."""
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
    for token_id in f.stop_token_ids or []:
        within(token_id, "stop_token_ids", 0, vocabulary - 1)
    f.biases(vocabulary)


def refuse(body: Body, not_offered: dict[str, tuple[Any, ...]]) -> None:
    """Raise UnsupportedParameter for a field that has none of the values that mean "off"."""
    for name, neutral in not_offered.items():
        if getattr(body, name) not in neutral:
            raise UnsupportedParameter(f"`{name}` is not supported by this server", field=name)


def require(holds: bool, name: str, rule: str) -> None:
    """Raise InvalidParameter unless a rule holds."""
    if not holds:
        raise InvalidParameter(f"`{name}` {rule}", field=name)


def within(value: float | None, name: str, minimum: float | None, maximum: float | None) -> None:
    """Raise InvalidParameter for a value outside of its limits, both included."""
    if value is None:
        return
    if minimum is not None:
        require(value >= minimum, name, f"must be >= {minimum}. Given: {value}")
    if maximum is not None:
        require(value <= maximum, name, f"must be <= {maximum}. Given: {value}")
