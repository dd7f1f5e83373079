"""A sequence: its token ids, and how many of them are computed in the KV cache.

             prompt_len
|------ prompt ------|--- completion ---|
|-- computed --|--- to compute ---------|   num_computed <= len(token_ids), + 1 with a placeholder
|== blocks of the block table ==|           cover at least the computed and scheduled part
"""

from collections.abc import Iterable
from enum import Enum, auto
from typing import Protocol

import numpy as np
import numpy.typing as npt

from container.engine.adapters import NO_ADAPTER
from container.engine.blocks.encoder_prompt import EncoderPrompt
from container.engine.ngram_proposer import NgramProposer
from container.errors import ServingError
from container.messages.engine import FinishReason, SamplingParams
from container.messages.images import ImageSpan, ImageTensors

RequestKey = tuple[bytes, int]  # the frontend's id and its number for the request

# A token bitmask: one bit per vocabulary id, lowest bit first, in 32-bit words.
Mask = npt.NDArray[np.int32]


class Constraint(Protocol):
    """Grammar state of one sequence, which a separate process computes."""

    @property
    def is_advanced(self) -> bool:
        """Whether the last accepted token has been processed: see `is_complete` and `error`."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether the bitmask of the next token is here, or will never be."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the grammar allows no further token."""
        ...

    @property
    def error(self) -> ServingError | None:
        """Why the grammar cannot be followed on; None while it can."""
        ...

    def fill(self, mask: Mask) -> None:
        """Write the bitmask of the allowed next tokens, [32-bit words], once it is ready."""
        ...

    def accept(self, token_id: int) -> None:
        """Begin to advance the state by one token."""
        ...

    def copy(self) -> "Constraint":
        """Copy the state for another sequence."""
        ...

    def close(self) -> None:
        """Release the state, and cancel its compile if no other request uses it."""
        ...


class SequenceState(Enum):
    """Scheduling state. A preempted sequence is WAITING again; a NEW one is not yet queued."""

    NEW = auto()
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """One stream of token ids. Owned by the scheduler; its KV cache manager changes its memory."""

    __slots__ = (
        "__weakref__",
        "_prompt_keys",
        "adapter",
        "arrived_at",
        "block_table",
        "constraint",
        "encoder",
        "finish_reason",
        "frontend_id",
        "image_end",
        "images",
        "is_deferred",
        "num_cached",
        "num_computed",
        "num_preemptions",
        "params",
        "placeholder",
        "position_shift",
        "prefill_parent",
        "prefix_ids",
        "prompt_len",
        "prompt_logprobs",
        "prompt_tops",
        "proposer",
        "request_id",
        "seed",
        "seq_index",
        "session",
        "session_s",
        "snapshot_positions",
        "started_at",
        "state",
        "state_slot",
        "token_ids",
        "whole_spans",
    )

    def __init__(
        self,
        request_id: int,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        frontend_id: bytes = b"",
        arrived_at: float = 0.0,
        prefill_parent: "Sequence | None" = None,
        seq_index: int = 0,
        images: ImageTensors | None = None,
        image_spans: Iterable[ImageSpan] = (),
        adapter: int = NO_ADAPTER,
        session: str = "",
        session_s: float = 0.0,
        encoder: EncoderPrompt | None = None,
    ) -> None:
        self.frontend_id = frontend_id
        self.prefill_parent = prefill_parent
        self.seq_index = seq_index
        self.adapter = adapter
        self.session = session
        self.session_s = session_s
        self.seed = params.seed_of(seq_index)
        self.encoder = encoder or EncoderPrompt()
        # Ids of the cached prefixes that end with its full blocks, one per cached block.
        self.prefix_ids: list[int] = []
        self.num_cached = 0
        self.prompt_logprobs: list[float] = []
        self.prompt_tops: list[list[tuple[int, float]]] = []
        self.images: ImageTensors = images or {}
        # Tokens from here on have the embeddings of their ids, and positions that are their indexes
        # and `position_shift`. The tokens of a whole span see each other: one step computes them.
        spans = list(image_spans)
        self.image_end = max((span.stop for span in spans), default=len(prompt_ids))
        self.image_end *= bool(self.images)
        self._prompt_keys = _with_digests(prompt_ids, spans) if spans else None
        self.position_shift = 0
        self.whole_spans: tuple[tuple[int, int], ...] = ()
        self.request_id = request_id
        self.params = params
        self.prompt_len = len(prompt_ids)
        self.token_ids = list(prompt_ids)
        self.block_table: list[int] = []
        # Where its convolution and recurrent states are; None unless the model is recurrent.
        self.state_slot: int | None = None
        # After how many tokens a snapshot of its states is worth keeping.
        self.snapshot_positions: tuple[int, ...] = ()
        self.num_computed = 0
        # Index of its next token in the in-flight step's output; None if no token is in flight.
        self.placeholder: int | None = None
        self.num_preemptions = 0
        self.state = SequenceState.NEW
        self.constraint: Constraint | None = None
        # Not scheduled, nor forgotten, since its constraint is late.
        self.is_deferred = False
        self.proposer: NgramProposer | None = None
        self.finish_reason: FinishReason | None = None
        self.arrived_at = arrived_at
        self.started_at: float | None = None

    @property
    def key(self) -> RequestKey:
        """Key of its request."""
        return self.frontend_id, self.request_id

    @property
    def cache_namespace(self) -> int:
        """Parent id of its first prefix, so that no adapter reuses another's keys and values."""
        return -self.adapter

    @property
    def has_known_images(self) -> bool:
        """Whether its key ids determine its keys and values."""
        return not self.images or self._prompt_keys is not None

    def key_ids(self, start: int, stop: int) -> list[int]:
        """Return the ids that identify cached keys and values: those of images are digests."""
        if self._prompt_keys is None or start >= self.prompt_len:
            return self.token_ids[start:stop]
        return self._prompt_keys[start:stop] + self.token_ids[max(start, self.prompt_len) : stop]

    @property
    def has_prompt_logprobs(self) -> bool:
        """Whether it has the log-probabilities of all prompt tokens but the first."""
        return len(self.prompt_logprobs) >= self.prompt_len - 1

    @property
    def lacks_prompt_logprobs(self) -> bool:
        """Whether its request asks for prompt logprobs that are not computed yet."""
        return self.params.prompt_logprobs and not self.has_prompt_logprobs

    @property
    def is_prompt_computed(self) -> bool:
        """Whether its whole prompt is in the KV cache, so that siblings can reuse the blocks."""
        return self.num_computed >= self.prompt_len

    @property
    def num_to_compute(self) -> int:
        """Tokens whose keys and values are not in the cache yet; at least 1 while running.

        The placeholder of an in-flight token counts.
        """
        return len(self.token_ids) + (self.placeholder is not None) - self.num_computed

    def chunk_len(self, count: int) -> int:
        """Shorten a chunk that would end inside of a span that one step has to compute."""
        end = self.num_computed + count
        for start, stop in self.whole_spans:
            if start < end < stop:
                return max(0, start - self.num_computed)
        return count

    @property
    def is_last_token_pending(self) -> bool:
        """Whether the in-flight token is the last one that the request allows."""
        return (
            self.placeholder is not None and self.completion_len + 1 >= self.params.max_new_tokens
        )

    @property
    def completion_len(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.prompt_len

    @property
    def can_speculate(self) -> bool:
        """Whether drafts can be verified: sampling depends on past tokens only through the model.

        Penalties, watermarks, bad words and grammars read the past tokens themselves.
        """
        params = self.params
        looks_back = (
            params.repetition_penalty != 1.0
            or params.context_frequency_penalty != 0.0
            or params.frequency_penalty != 0.0
            or params.presence_penalty != 0.0
            or params.watermark is not None
            or bool(params.bad_words)
        )
        return self.constraint is None and not looks_back

    def propose_draft(self, count: int) -> tuple[int, ...]:
        """Propose at most `count` draft tokens; see `can_speculate`."""
        if self.proposer is None:
            self.proposer = NgramProposer()
        return self.proposer.propose(self.token_ids, count)

    def with_draft(self, draft: tuple[int, ...]) -> "Sequence":
        """Return a copy with the draft tokens appended, for verifying them. Never scheduled."""
        other = Sequence(self.request_id, self.token_ids[: self.prompt_len], self.params)
        other.seed = self.seed
        other.token_ids = [*self.token_ids, *draft]
        return other

    def append(self, token_id: int, end_token_ids: frozenset[int]) -> None:
        """Append a sampled token and set `finish_reason` if it is the last.

        Whether a grammar ends with it is known later: see container.engine.structured_output.
        """
        self.token_ids.append(token_id)
        is_end = token_id in end_token_ids and not self.params.ignore_eos
        if is_end:
            self.finish_reason = FinishReason.END_TOKEN
            return
        if token_id in self.params.stop_token_ids:
            self.finish_reason = FinishReason.STOP
            return
        if self.constraint is not None:
            self.constraint.accept(token_id)
        if self.completion_len >= self.params.max_new_tokens:
            self.finish_reason = FinishReason.LENGTH


def _with_digests(ids: list[int], spans: Iterable[ImageSpan]) -> list[int]:
    """Return a prompt's ids with negative numbers, made of the digests, for image tokens."""
    keys = list(ids)
    for span in spans:
        key = -1 - int.from_bytes(span.digest, "big")
        keys[span.start : span.stop] = [key] * (span.stop - span.start)
    return keys
