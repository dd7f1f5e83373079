"""TGI's generate shape: `/generate`, `/generate_stream`, `/` and `/invocations`.

Messages and the order of checks are TGI's (router/src/validation.rs at v3.3.7).
"""

from typing import Any

from pydantic import Field

from container.errors import InvalidParameter
from container.frontend.generation.limits import RequestLimits
from container.frontend.generation.request_context import MIN_DEADLINE_S
from container.frontend.web.request_body import Body, Items


def quoted(meaning: str, *, default: Any = None, **bounds: float) -> Any:
    """A field as /openapi.json shows it. `check` below has the rules, in TGI's words."""
    return Field(default=default, description=meaning, json_schema_extra=dict(bounds))


class GenerateParameters(Body):
    """`parameters`; an absent field and null mean the same."""

    best_of: int | None = quoted(
        "How many to generate, of which the likeliest is answered", minimum=1
    )
    temperature: float | None = quoted("Over 1 flattens, under 1 sharpens", exclusiveMinimum=0)
    repetition_penalty: float | None = quoted("1.0 is none", exclusiveMinimum=0)
    frequency_penalty: float | None = quoted("0.0 is none", minimum=-2, maximum=2)
    top_k: int | None = quoted("Draw from the k likeliest", minimum=1, maximum=2**31 - 1)
    top_p: float | None = quoted("Draw from this share", exclusiveMinimum=0, maximum=1)
    typical_p: float | None = quoted("Draw from the typical", exclusiveMinimum=0, maximum=1)
    do_sample: bool | None = quoted("Draw the next token", default=False)
    max_new_tokens: int | None = quoted("Absent: what the context leaves", minimum=1)
    return_full_text: bool | None = quoted("Put the prompt before the text")
    stop: Items[str] | None = quoted("Texts that end the completion; the match stays in it")
    truncate: int | None = quoted("Keep only the last tokens of the prompt", minimum=1)
    watermark: bool | None = quoted("Favour a part of the vocabulary", default=False)
    details: bool | None = quoted("Answer with tokens and finish reason", default=False)
    decoder_input_details: bool | None = quoted("Details with the prompt's tokens", default=False)
    seed: int | None = quoted("Repeats a drawing", minimum=0, maximum=2**64 - 1)
    top_n_tokens: int | None = quoted("Show so many likely tokens", minimum=0)
    grammar: dict[str, Any] | None = quoted('{"type", "value"}, which the text follows')
    adapter_id: str | None = None
    request_deadline: float | None = Field(
        default=None,
        ge=MIN_DEADLINE_S,
        description="Seconds after which the answer so far is returned",
    )

    @property
    def samples(self) -> bool:
        """Whether the next token is drawn, not just the most likely one."""
        return bool(
            self.do_sample
            or self.top_k is not None
            or (self.temperature is not None and self.temperature != 1.0)
            or (self.top_p is not None and self.top_p < 1.0)
            or (self.typical_p is not None and self.typical_p < 1.0)
        )

    @property
    def wants_details(self) -> bool:
        """Prompt details are a kind of details."""
        return bool(self.details or self.decoder_input_details)


class GenerateRequest(Body):
    """A prompt with its parameters. Without `parameters` TGI samples; with `{}` it does not."""

    inputs: str
    parameters: GenerateParameters | None = None
    stream: bool | None = False

    @property
    def resolved(self) -> GenerateParameters:
        """The parameters, with TGI's meaning for their absence."""
        return self.parameters or GenerateParameters(do_sample=True)


def check(
    parameters: GenerateParameters, limits: RequestLimits, max_input_tokens: int, *, streams: bool
) -> None:
    """Check ranges. Raises InvalidParameter."""
    p = parameters
    _check_best_of(p, limits.max_best_of, streams=streams)
    _require(p.temperature is None or p.temperature > 0, "temperature", "must be strictly positive")
    is_positive = p.repetition_penalty is None or p.repetition_penalty > 0
    _require(is_positive, "repetition_penalty", "must be strictly positive")
    is_inside = p.frequency_penalty is None or -2 <= p.frequency_penalty <= 2
    _require(is_inside, "frequency_penalty", "must be >= -2.0 and <= 2.0")
    _require(p.top_p is None or 0 < p.top_p <= 1, "top_p", "must be > 0.0 and <= 1.0")
    _require(p.typical_p is None or 0 < p.typical_p <= 1, "typical_p", "must be > 0.0 and <= 1.0")
    _require(p.top_k is None or p.top_k > 0, "top_k", "must be strictly positive")
    _require(p.top_k is None or p.top_k < 2**31, "top_k", "must be < 2^31")
    is_positive_count = p.max_new_tokens is None or p.max_new_tokens > 0
    _require(is_positive_count, "max_new_tokens", "must be strictly positive")
    num_stops = len(p.stop or [])
    _require(
        num_stops <= limits.max_stops,
        "stop",
        f"supports up to {limits.max_stops} stop sequences. Given: {num_stops}",
    )
    _require(all(p.stop or []), "stop", "must not contain an empty string")
    _require(p.seed is None or 0 <= p.seed < 2**64, "seed", "must be >= 0 and < 2^64")
    _require(
        p.top_n_tokens is None or 0 <= p.top_n_tokens <= limits.max_top_tokens,
        "top_n_tokens",
        f"must be >= 0 and <= {limits.max_top_tokens}. Given: {p.top_n_tokens}",
    )
    _require(
        not (streams and p.decoder_input_details),
        "decoder_input_details",
        "== true is not supported when streaming tokens",
    )
    _require(
        p.truncate is None or 0 < p.truncate <= max_input_tokens,
        "truncate",
        f"must be strictly positive and less than {max_input_tokens}. Given: {p.truncate}",
    )


def _check_best_of(p: GenerateParameters, most: int, *, streams: bool) -> None:
    if p.best_of is None or p.best_of == 1:
        return
    _require(0 < p.best_of <= most, "best_of", f"must be > 0 and <= {most}. Given: {p.best_of}")
    _require(not streams, "best_of", "!= 1 is not supported when streaming tokens")
    if not p.samples:
        raise InvalidParameter("you must use sampling when `best_of` is > 1", field="best_of")
    if p.seed is not None:
        raise InvalidParameter("`seed` must not be set when `best_of` > 1", field="seed")


def _require(holds: bool, name: str, requirement: str) -> None:
    if not holds:
        raise InvalidParameter(f"`{name}` {requirement}", field=name)
