"""What the settings allow a request to ask for."""

from dataclasses import dataclass

from container.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Most of each thing in one request, the watermark's strength, and whether grammars are on."""

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
    def from_settings(cls, settings: Settings) -> "RequestLimits":
        """Pick them."""
        return cls(
            max_concurrent_requests=settings.engine.max_concurrent_requests,
            max_prompts=settings.requests.max_client_batch_size,
            max_embedding_inputs=settings.requests.max_embedding_inputs,
            max_sequences=settings.engine.max_batch_size,
            max_best_of=settings.requests.max_best_of,
            max_stops=settings.requests.max_stop_sequences,
            max_top_tokens=settings.requests.max_top_n_tokens,
            watermark_gamma=settings.requests.watermark_gamma,
            watermark_delta=settings.requests.watermark_delta,
            grammars=not settings.requests.disable_grammar_support,
        )
