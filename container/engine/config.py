"""The sizes of an engine, and the check of a request against them."""

from dataclasses import dataclass
from typing import Any

from container.engine.blocks.encoder_prompt import lay_out, prompt_key_span
from container.engine.sequence import Sequence
from container.errors import InvalidParameter, Overloaded, PromptTooLong
from container.messages.engine import SamplingParams, Submit


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes of the engine, in tokens, blocks and requests.

    `max_batch_requests`: records of batch bodies among them. `num_slots`: number of KV blocks that
    host memory holds for offloading. `num_state_slots`: sequences of a recurrent model whose states
    fit, and `num_snapshots` the states that are stored for reuse; 0 for other models. Prompts are
    split at multiples of `chunk_multiple` tokens. `decoder_start`: the ids that a paged decoder
    starts with after an encoder has read the prompt; empty for other models.
    """

    block_size: int
    num_blocks: int
    max_batch_tokens: int
    max_running: int
    max_input_tokens: int
    max_total_tokens: int
    max_requests: int = 128
    max_batch_requests: int = 64
    vocabulary: int = 2**31
    reuses_prefixes: bool = True
    scores_prompts: bool = True
    speculate: int = 0
    num_slots: int = 0
    num_state_slots: int = 0
    num_snapshots: int = 0
    chunk_multiple: int = 1
    decoder_start: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check that a longest sequence fits the cache; it could never finish otherwise."""
        if self.max_total_tokens > self.num_blocks * self.block_size:
            raise ValueError(
                f"max_total_tokens is {self.max_total_tokens}, but the KV cache holds only "
                f"{self.num_blocks * self.block_size} tokens: lower it or add blocks"
            )

    def make_sequence(
        self, request_id: int, prompt_ids: list[int], params: SamplingParams, **options: Any
    ) -> Sequence:
        """Create a sequence for a prompt, as the model's cache needs it."""
        if not self.decoder_start:
            return Sequence(request_id, prompt_ids, params, **options)
        ids, encoder = lay_out(prompt_ids, self.decoder_start, self.block_size)
        options["image_spans"] = [prompt_key_span(prompt_ids, encoder)]
        return Sequence(request_id, ids, params, encoder=encoder, **options)

    def check_capacity(self, num_requests: int, num_batch: int, *, is_batch: bool) -> None:
        """Raise Overloaded if the engine is full, given its requests and records of batch bodies.

        Records may fill `max_batch_requests` places, and only those that no request has. Requests
        may fill all `max_requests`, however many records run.
        """
        is_full = num_requests >= self.max_requests
        if is_batch:
            is_full = num_batch >= self.max_batch_requests
            is_full |= num_requests + num_batch >= self.max_requests
        if is_full:
            raise Overloaded(
                f"the server already has {self.max_requests} requests (MAX_CONCURRENT_REQUESTS)",
                retry_after_s=1,
            )

    def check(self, message: Submit) -> None:
        """Check a request's lengths and ids. Raises PromptTooLong or InvalidParameter.

        Frontends check the same and name the client's fields; this protects the engine's memory.
        """
        if message.params.prompt_logprobs and not self.scores_prompts:
            raise InvalidParameter(
                "this model reads the prompt with an encoder, which gives its tokens no "
                "log-probabilities: leave out decoder_input_details"
            )
        num_tokens, new_tokens = len(message.prompt_ids), message.params.max_new_tokens
        if num_tokens == 0:
            raise InvalidParameter("the prompt has no tokens")
        if new_tokens < 1:
            raise InvalidParameter("max_new_tokens must be at least 1")
        if not 0 <= min(message.prompt_ids) <= max(message.prompt_ids) < self.vocabulary:
            raise InvalidParameter(f"the prompt has ids outside 0 to {self.vocabulary - 1}")
        if num_tokens > self.max_input_tokens:
            raise PromptTooLong(
                f"the prompt has {num_tokens} tokens; the limit is {self.max_input_tokens}"
            )
        if num_tokens + new_tokens > self.max_total_tokens:
            raise PromptTooLong(
                f"{num_tokens} prompt tokens and {new_tokens} new ones are more than "
                f"{self.max_total_tokens}"
            )
        self._check_laid_out(message)

    def _check_laid_out(self, message: Submit) -> None:
        """Check that a prompt fits the cache with its padding. Raises PromptTooLong."""
        if not self.decoder_start:
            return
        ids, _ = lay_out(message.prompt_ids, self.decoder_start, self.block_size)
        limit = self.num_blocks * self.block_size
        if len(ids) + message.params.max_new_tokens > limit:
            raise PromptTooLong(
                f"{len(message.prompt_ids)} prompt tokens and {message.params.max_new_tokens} new "
                f"ones do not fit the cache of {limit} tokens"
            )
