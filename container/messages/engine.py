"""Messages between a frontend and the engine: msgspec structs in MessagePack frames.

Both ends change together; nothing else is shared between the processes. Errors cross as data.
"""

import secrets
from enum import Enum
from typing import Literal

import msgspec

from container.messages.common import Abort, EngineState, Hello, RequestFailed
from container.messages.images import ImageSpan, ImageTensors

# Upper bounds of the buckets that both ends know. Those of durations are TGI's, geometric from
# 0.15 ms with factor 1.5, of which this has every second one; those of sizes go to 1024, as TGI's.
STEP_SECONDS = tuple(1.5e-4 * 1.5**step for step in range(0, 35, 2))
BATCH_SIZES = tuple(float(2**power) for power in range(11))


class FinishReason(Enum):
    """Why a sequence ended; each dialect has its own words for these."""

    END_TOKEN = "end_token"
    STOP = "stop"
    LENGTH = "length"
    ABORTED = "aborted"
    DEADLINE = "deadline"  # set by frontends, which end a request at its deadline


class LogprobMode(Enum):
    """Which log-probabilities a request wants: the model's own, or those sampled from."""

    NONE = "none"
    RAW = "raw"
    PROCESSED = "processed"


class Watermark(msgspec.Struct, frozen=True):
    """The share of the vocabulary that is favoured, and by how much."""

    gamma: float
    delta: float


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one sequence picks its tokens. `temperature` 0 is greedy; `top_k` 0 is off.

    `context_frequency_penalty` is TGI's: a share of prompt and completion. `frequency_penalty` and
    `presence_penalty` are OpenAI's: counts of the completion. `grammar` is in the form of
    container.grammar.shape; the completion follows it and ends where it ends. Only
    `allowed_token_ids` come, if there are some; `bad_words` are runs of ids that do not.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    context_frequency_penalty: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] = []
    bad_words: list[list[int]] = []
    watermark: Watermark | None = None
    min_tokens: int = 0
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    logprobs: LogprobMode = LogprobMode.NONE
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    prompt_top_logprobs: int = 0
    grammar: str = ""

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    def seed_of(self, seq_index: int) -> int:
        """Return the seed of one of the request's sequences."""
        return self.seed + seq_index


def random_seed() -> int:
    """Draw the seed of a request that samples and names none."""
    return secrets.randbits(63)


class Submit(msgspec.Struct, tag="submit", frozen=True, omit_defaults=True):
    """Frontend to engine: generate `num_sequences` times for this prompt.

    `request_id` is the frontend's own; its client assigns it.
    `images` are those of the prompt, preprocessed; the prompt has their placeholder ids in
    `image_spans`. `adapter` is the name of a LoRA adapter, empty for the base model. The prompt's
    blocks are held for `session_s` seconds under the id `session`, if it has one. `is_batch`: a
    record of a body of many, which waits for a place and never takes that of another request.
    """

    request_id: int
    prompt_ids: list[int]
    params: SamplingParams
    num_sequences: int = 1
    images: ImageTensors = {}
    adapter: str = ""
    session: str = ""
    session_s: float = 0.0
    is_batch: bool = False
    image_spans: list[ImageSpan] = []


class AddAdapter(msgspec.Struct, tag="add_adapter", frozen=True):
    """Frontend to engine: make a LoRA adapter known; answered by Done."""

    request_id: int
    name: str
    source: str
    preload: bool
    pin: bool


class RemoveAdapter(msgspec.Struct, tag="remove_adapter", frozen=True):
    """Frontend to engine: forget a LoRA adapter; answered by Done."""

    request_id: int
    name: str


ToEngine = Hello | Submit | Abort | AddAdapter | RemoveAdapter


class AdapterInfo(msgspec.Struct, frozen=True):
    """A known LoRA adapter; `source` is a folder or a Hub id."""

    name: str
    source: str
    is_loaded: bool
    is_pinned: bool


class EngineInfo(msgspec.Struct, frozen=True):
    """Facts about the loaded model; they do not change while the engine runs.

    `model_path` is a folder with the model's text files, not always with its weights. `attention`
    is `paged`, or `own`: the model's own cache, one sequence after another. `is_multimodal`:
    prompts may have images. `tensor_parallel`: ranks that share each layer; `data_parallel`:
    replicas of the model. `reuses_prefixes`: a cached prefix is not computed again. `fallbacks`
    are the reasons for which it is served more slowly than it could be. `max_requests` may be
    unfinished at a time, without records of batch bodies. `state_slots` sequences of a recurrent
    model may run at a time; 0 for other models. `cpu` names the processor's instruction set, if the
    model runs on it. `not_proved` are the parts that the checks at start left out for their time.
    """

    model_id: str
    model_path: str
    model_sha: str | None
    model_type: str
    dtype: str
    device: str
    vocabulary: int
    max_input_tokens: int
    max_total_tokens: int
    cache_tokens: int
    max_batch_tokens: int
    attention: Literal["paged", "own"] = "paged"
    quantize: str | None = None
    is_multimodal: bool = False
    tensor_parallel: int = 1
    data_parallel: int = 1
    reuses_prefixes: bool = False
    fallbacks: list[str] = []
    max_requests: int = 128
    state_slots: int = 0
    cpu: str | None = None
    not_proved: list[str] = []


class Distribution(msgspec.Struct, frozen=True, array_like=True):
    """How many numbers fell into each bucket, and their sum."""

    counts: list[int] = []
    total: float = 0.0


class StepTotals(msgspec.Struct, frozen=True, array_like=True):
    """Steps of one kind: begun, done, and the seconds of the whole and of the model's part."""

    begun: int = 0
    done: int = 0
    step_seconds: Distribution = Distribution()
    forward_seconds: Distribution = Distribution()


class StepStats(msgspec.Struct, frozen=True, array_like=True):
    """Totals of the steps since the start; a step with a chunk of a prompt counts as `prefill`."""

    prefill: StepTotals = StepTotals()
    decode: StepTotals = StepTotals()
    batch_sizes: Distribution = Distribution()
    prefill_tokens: int = 0
    decode_tokens: int = 0


class EngineLoad(msgspec.Struct, frozen=True):
    """How busy the engine is, in sequences, blocks and tokens; the counters only grow.

    `max_tokens` is the length that the running sequences may reach, added up. `requests` are the
    unfinished ones, without records of batch bodies.
    """

    running: int = 0
    waiting: int = 0
    max_tokens: int = 0
    blocks_used: int = 0
    blocks_total: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    blocks_cached: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    blocks_on_host: int = 0
    restored_tokens: int = 0
    steps: StepStats = StepStats()
    requests: int = 0
    state_slots_used: int = 0
    state_slots_total: int = 0
    state_snapshots: int = 0


class Status(msgspec.Struct, tag="status", frozen=True):
    """Engine to every frontend, several times a second: life sign, state and load.

    `removed_adapters` are names that were registered once, so that a request for one is refused.
    """

    state: EngineState
    detail: str
    info: EngineInfo | None = None
    load: EngineLoad = EngineLoad()
    adapters: list[AdapterInfo] | None = None
    removed_adapters: list[str] = []


class Done(msgspec.Struct, tag="done", frozen=True):
    """Engine to one frontend: the command with this id has been carried out."""

    request_id: int


class PromptStats(msgspec.Struct, frozen=True, array_like=True):
    """Statistics of a sequence's prompt, sent with its first token.

    `queue_s` is the time before its first step. On request, `logprobs` has one number for each
    prompt token but the first, and `tops` the most likely ids at those positions.
    """

    queue_s: float
    cached_tokens: int
    logprobs: list[float] = []
    tops: list[list[tuple[int, float]]] = []


class TokenEvent(msgspec.Struct, frozen=True, array_like=True):
    """One new token of a sequence. `top` has the most likely ids with their log-probabilities."""

    request_id: int
    seq_index: int
    token_id: int
    logprob: float | None = None
    finish_reason: FinishReason | None = None
    top: list[tuple[int, float]] = []
    prompt: PromptStats | None = None


class StepEvents(msgspec.Struct, tag="events", frozen=True):
    """Engine to one frontend: the events of one step for its requests."""

    events: list[TokenEvent]


ToFrontend = Status | StepEvents | RequestFailed | Done


to_engine_decoder = msgspec.msgpack.Decoder(ToEngine)


to_frontend_decoder = msgspec.msgpack.Decoder(ToFrontend)
