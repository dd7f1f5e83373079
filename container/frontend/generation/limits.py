"""The limits that the settings set for a request."""

from dataclasses import dataclass

from container.settings.engine import EngineSettings
from container.settings.requests import RequestSettings


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Upper limits of one request, the watermark's strength, and whether grammars are on."""

    max_concurrent_requests: int = 128
    max_prompts: int = 4
    max_embedding_inputs: int = 2048
    max_sequences: int = 64
    max_best_of: int = 2
    max_stops: int = 4
    max_top_tokens: int = 5
    watermark_gamma: float = 0.5
    watermark_delta: float = 2.0
    grammars: bool = True

    @classmethod
    def from_settings(cls, engine: EngineSettings, requests: RequestSettings) -> "RequestLimits":
        """Pick the limits from two groups of settings."""
        return cls(
            max_concurrent_requests=engine.max_concurrent_requests,
            max_prompts=requests.max_client_batch_size,
            max_embedding_inputs=requests.max_embedding_inputs,
            max_sequences=engine.max_batch_size,
            max_best_of=requests.max_best_of,
            max_stops=requests.max_stop_sequences,
            max_top_tokens=requests.max_top_n_tokens,
            watermark_gamma=requests.watermark_gamma,
            watermark_delta=requests.watermark_delta,
            grammars=not requests.disable_grammar_support,
        )
