"""TGI's generate shape: `/generate`, `/generate_stream`, `/` and `/invocations`.

Messages and the order of checks are TGI's (router/src/validation.rs at v3.3.7).
"""

from typing import Any

from pydantic import Field

from container.errors import InvalidParameter, UnsupportedParameter
from container.frontend.bodies import Body


class GenerateParameters(Body):
    """`parameters`; an absent field and null mean the same."""

    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool | None = False
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: list[str] | None = Field(default=None)
    truncate: int | None = None
    watermark: bool | None = False
    details: bool | None = False
    decoder_input_details: bool | None = False
    seed: int | None = None
    top_n_tokens: int | None = None
    grammar: dict[str, Any] | None = None
    adapter_id: str | None = None

    @property
    def samples(self) -> bool:
        """Whether the next token is drawn, not just the most likely one."""
        return bool(
            self.do_sample
            or self.top_k is not None
            or (self.temperature is not None and self.temperature != 1.0)
            or (self.top_p is not None and self.top_p < 1.0)
        )


class GenerateRequest(Body):
    """A prompt with its parameters. Without `parameters` TGI samples; with `{}` it does not."""

    inputs: str
    parameters: GenerateParameters | None = None
    stream: bool | None = False

    @property
    def settled(self) -> GenerateParameters:
        """The parameters, with TGI's meaning for their absence."""
        return self.parameters or GenerateParameters(do_sample=True)


# What TGI knows and this version does not offer: the value that means "off".
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "repetition_penalty": (None, 1.0),
    "frequency_penalty": (None, 0.0),
    "typical_p": (None, 1.0),
    "watermark": (None, False),
    "decoder_input_details": (None, False),
    "top_n_tokens": (None, 0),
    "grammar": (None,),
    "adapter_id": (None,),
}


def check(parameters: GenerateParameters, *, max_stops: int, max_input_tokens: int) -> None:
    """Check ranges. Raises InvalidParameter, or UnsupportedParameter for what is not offered."""
    for name, neutral in NOT_OFFERED.items():
        if getattr(parameters, name) not in neutral:
            raise UnsupportedParameter(f"`{name}` is not supported by this server", field=name)
    p = parameters
    _require(p.temperature is None or p.temperature > 0, "temperature", "must be strictly positive")
    _require(p.top_p is None or 0 < p.top_p <= 1, "top_p", "must be > 0.0 and <= 1.0")
    _require(p.top_k is None or p.top_k > 0, "top_k", "must be strictly positive")
    _require(
        p.max_new_tokens is None or p.max_new_tokens > 0,
        "max_new_tokens",
        "must be strictly positive",
    )
    num_stops = len(p.stop or [])
    _require(
        num_stops <= max_stops,
        "stop",
        f"supports up to {max_stops} stop sequences. Given: {num_stops}",
    )
    _require(p.seed is None or 0 <= p.seed < 2**64, "seed", "must be >= 0 and < 2^64")
    _require(
        p.truncate is None or 0 < p.truncate <= max_input_tokens,
        "truncate",
        f"must be strictly positive and less than {max_input_tokens}. Given: {p.truncate}",
    )


def _require(holds: bool, name: str, rule: str) -> None:
    if not holds:
        raise InvalidParameter(f"`{name}` {rule}", field=name)
