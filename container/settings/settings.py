"""Settings: one frozen class, read once from the environment by a pure function.

Each field names its environment variables (the first is the one we document, the others are
aliases that TGI and SageMaker users know), its default and its meaning. An empty variable counts
as unset, since SageMaker's SDK sends such. All problems are reported at once.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from container.errors import ConfigError
from container.settings.casts import (
    Cast,
    batch_sizes,
    choice,
    dtype,
    factor,
    file,
    flag,
    fraction,
    gibibytes,
    gpu_count,
    hosts,
    integer,
    kv_cache_dtype,
    log_level,
    max_memory,
    number,
    one_of,
    rope_scaling,
    share,
    text,
    url,
)
from container.settings.process_env import SAGEMAKER_MODEL_DIR

T = TypeVar("T")

# The formats of container.text.tool_formats.
TOOL_CALL_PARSERS = (
    "hermes", "qwen_xml", "llama_json", "pythonic", "mistral", "mistral_json", "deepseek_v3",
    "deepseek_v31", "gemma",
)  # fmt: skip
PAYLOAD_BYTES = 2_000_000  # TGI's
# SageMaker's defaults for batch transform; a limit of 0 asks for chunked bodies of any length.
BATCH_MB, UNLIMITED_BATCH_MB = 6, 100
# Tasks for which the model that HF_MODEL_ID names is an embedding or rerank model.
EMBEDDING_TASKS = ("feature-extraction", "sentence-similarity", "text-ranking")
# Variables known from TGI whose silent loss would change answers or open a door.
REFUSED = {
    "WEIGHTS_CACHE_OVERRIDE": "set HF_MODEL_ID to the folder with the weights",
}


def setting(default: T, *names: str, cast: Cast, meaning: str, secret: bool = False) -> T:
    """Declare a field: its variables, how they are read and what it means."""
    metadata = {"names": names, "cast": cast, "meaning": meaning, "secret": secret}
    return dataclasses.field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True)
class EmbeddingSource:
    """A Hub id or folder, its revision, and the variable that says so."""

    model_id: str
    revision: str | None
    variable: str


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, parsed and checked. Values are given to collaborators, never this whole."""

    model_id: str | None = setting(
        None, "HF_MODEL_ID", "MODEL_ID", cast=text,
        meaning="Hub id or folder of the model. Unset: /opt/ml/model, when it holds files.",
    )  # fmt: skip
    revision: str | None = setting(
        None, "HF_MODEL_REVISION", "REVISION", cast=text,
        meaning="Branch, tag or commit on the Hub.",
    )  # fmt: skip
    hf_token: str | None = setting(
        None, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN", cast=text, secret=True,
        meaning="Access token for the Hub.",
    )  # fmt: skip
    task: str | None = setting(
        None, "HF_TASK", cast=text,
        meaning="What HF_MODEL_ID is for, as the Hub has it. `feature-extraction`, "
        "`sentence-similarity`, `text-ranking`: embeddings and rerank. Unset: by its config.json.",
    )  # fmt: skip
    embedding_model_id: str | None = setting(
        None, "EMBEDDING_MODEL_ID", cast=text,
        meaning="Hub id or folder of an embedding or rerank model, beside the other or alone.",
    )  # fmt: skip
    embedding_revision: str | None = setting(
        None, "EMBEDDING_MODEL_REVISION", cast=text,
        meaning="Its branch, tag or commit on the Hub.",
    )  # fmt: skip
    trust_remote_code: bool = setting(
        False, "HF_MODEL_TRUST_REMOTE_CODE", "TRUST_REMOTE_CODE", "HF_TRUST_REMOTE_CODE",
        cast=flag, meaning="Run Python code that comes with the model.",
    )  # fmt: skip
    tokenizer_config_path: str | None = setting(
        None, "TOKENIZER_CONFIG_PATH", cast=file,
        meaning="File with another chat template: a tokenizer_config.json or a .jinja file.",
    )  # fmt: skip
    num_gpus: int | None = setting(
        None, "SM_NUM_GPUS", "NUM_SHARD", cast=gpu_count,
        meaning="GPUs to use. Unset or `all`: every visible one; 0 or none: the CPU.",
    )  # fmt: skip
    data_parallel: int = setting(
        1, "DATA_PARALLEL", cast=integer(1, 64),
        meaning="Copies of the model, each in an engine of its own with its share of the GPUs.",
    )  # fmt: skip
    tensor_parallel: int | None = setting(
        None, "TENSOR_PARALLEL", cast=integer(1, 64),
        meaning="Processes that share every layer of a copy, a GPU each, or together on the CPU. "
        "Unset: one for each GPU of a copy, if the model can be split; if not, or with 1, whole "
        "layers are spread over the GPUs.",
    )  # fmt: skip
    max_memory: str | None = setting(
        None, "MAX_MEMORY", cast=max_memory,
        meaning="Spread whole layers over devices and let them take this much, such as "
        "`0=20GiB,1=20GiB,cpu=60GiB`; what fits nowhere is read from disk in every step.",
    )  # fmt: skip
    dtype: str = setting(
        "auto", "DTYPE", cast=dtype,
        meaning="Number format of weights and cache. `auto`: bfloat16 where it is fast.",
    )  # fmt: skip
    kv_cache_dtype: str = setting(
        "auto", "KV_CACHE_DTYPE", cast=kv_cache_dtype,
        meaning="Number format of the KV cache. `auto`: as the weights; `fp8_e4m3fn` (or `fp8`), "
        "`fp8_e5m2`: twice as many tokens in the same memory, less exact.",
    )  # fmt: skip
    rope_scaling: str | None = setting(
        None, "ROPE_SCALING", cast=rope_scaling,
        meaning="linear: stretch the model's rotary positions over a longer context.",
    )  # fmt: skip
    rope_factor: float | None = setting(
        None, "ROPE_FACTOR", cast=factor,
        meaning="How many times longer that context is. Implies ROPE_SCALING=linear.",
    )  # fmt: skip
    max_input_tokens: int | None = setting(
        None, "MAX_INPUT_TOKENS", "MAX_INPUT_LENGTH", cast=integer(1),
        meaning="Longest prompt, in tokens. Unset: MAX_TOTAL_TOKENS - 1.",
    )  # fmt: skip
    max_total_tokens: int | None = setting(
        None, "MAX_TOTAL_TOKENS", cast=integer(2),
        meaning="Longest prompt and completion together. Unset: the model's context.",
    )  # fmt: skip
    max_batch_prefill_tokens: int | None = setting(
        None, "MAX_BATCH_PREFILL_TOKENS", cast=integer(1),
        meaning="Most tokens in one step. Unset: 256 on a CPU, 2048 on a GPU.",
    )  # fmt: skip
    max_batch_total_tokens: int | None = setting(
        None, "MAX_BATCH_TOTAL_TOKENS", cast=integer(16),
        meaning="Size of the KV cache, in tokens. Unset: what half of a CPU's free memory holds, "
        "or nearly all of a GPU's.",
    )  # fmt: skip
    max_batch_tokens: int | None = setting(
        None, "MAX_BATCH_TOKENS", cast=integer(1),
        meaning="Most tokens in one pass of the embedding model. Unset: 1024 on a CPU, else 16384.",
    )  # fmt: skip
    max_embedding_inputs: int = setting(
        2048, "MAX_EMBEDDING_INPUTS", cast=integer(1),
        meaning="Most texts in one embedding or rerank request.",
    )  # fmt: skip
    auto_truncate: bool = setting(
        False, "AUTO_TRUNCATE", cast=flag,
        meaning="Cut texts too long for the embedding model, unless a request says not to.",
    )  # fmt: skip
    max_batch_size: int = setting(
        64, "MAX_BATCH_SIZE", cast=integer(1, 4096),
        meaning="Most sequences in one step.",
    )  # fmt: skip
    max_concurrent_requests: int = setting(
        128, "MAX_CONCURRENT_REQUESTS", cast=integer(1),
        meaning="Requests that each copy takes at a time, waiting ones too; one more gets a 429.",
    )  # fmt: skip
    max_client_batch_size: int = setting(
        4, "MAX_CLIENT_BATCH_SIZE", cast=integer(1),
        meaning="Most prompts in one request.",
    )  # fmt: skip
    quantize: str | None = setting(
        None, "QUANTIZE", "HF_MODEL_QUANTIZE", cast=choice(
            "int8", "bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4", "eetq", "fp8", "gptq",
            "awq", "compressed-tensors", "exl2", "marlin",
        ),
        meaning="Smaller weights. `int8`: eight bits, of any checkpoint, on a CPU too; the names "
        "that TGI knows need a GPU. What cannot work stops the start and says why.",
    )  # fmt: skip
    speculate: int = setting(
        0, "SPECULATE", cast=integer(0, 32),
        meaning="Tokens guessed from the text so far and checked in one step; 0: none. For few "
        "clients and text that repeats itself; never changes an answer.",
    )  # fmt: skip
    overlap_steps: bool | None = setting(
        None, "OVERLAP_STEPS", cast=flag,
        meaning="Begin a step before the tokens of the last one are read, so that a GPU never "
        "waits. Unset: on a GPU. Without effect with SPECULATE, or for a model with its own cache.",
    )  # fmt: skip
    require_fast_path: bool = setting(
        False, "REQUIRE_FAST_PATH", cast=flag,
        meaning="Refuse to start where the model would be served more slowly than this server can: "
        "without paged attention, compiled kernels, fused attention or CUDA graphs. Unset: the "
        "log warns, and `/info` has the reasons as `fallbacks`.",
    )  # fmt: skip
    cuda_graphs: tuple[int, ...] | None = setting(
        None, "CUDA_GRAPHS", cast=batch_sizes,
        meaning="Numbers of sequences for which a step of single tokens is recorded as a CUDA "
        "graph; 0: none. Unset: up to MAX_BATCH_SIZE, unless the model is split over GPUs.",
    )  # fmt: skip
    compile: bool = setting(
        False, "COMPILE", cast=flag,
        meaning="Compile the decoder layers with torch.compile. The start takes minutes; what is "
        "made is kept in TORCHINDUCTOR_CACHE_DIR.",
    )  # fmt: skip
    swap_space: float | None = setting(
        None, "SWAP_SPACE", cast=gibibytes,
        meaning="GiB of the host's memory for prefixes that no longer fit the GPU's cache; 0: "
        "none. Unset: a quarter of what is free, at most 16, where copying a prefix back is "
        "measured to be faster than computing it again.",
    )  # fmt: skip
    max_stop_sequences: int = setting(
        4, "MAX_STOP_SEQUENCES", cast=integer(0),
        meaning="Most stop strings in a request.",
    )  # fmt: skip
    max_best_of: int = setting(
        2, "MAX_BEST_OF", cast=integer(1, 128),
        meaning="Most sequences that `best_of` may ask for.",
    )  # fmt: skip
    max_top_n_tokens: int = setting(
        5, "MAX_TOP_N_TOKENS", cast=integer(0, 100),
        meaning="Most likely tokens that `top_n_tokens` may ask for.",
    )  # fmt: skip
    cuda_memory_fraction: float = setting(
        1.0, "CUDA_MEMORY_FRACTION", cast=share,
        meaning="Share of a GPU's memory that the server may use.",
    )  # fmt: skip
    prefix_caching: bool = setting(
        True, "PREFIX_CACHING", cast=flag,
        meaning="Compute a prefix that several prompts share only once.",
    )  # fmt: skip
    watermark_gamma: float = setting(
        0.5, "WATERMARK_GAMMA", cast=fraction,
        meaning="Share of the vocabulary that a watermark favours.",
    )  # fmt: skip
    watermark_delta: float = setting(
        2.0, "WATERMARK_DELTA", cast=number,
        meaning="How much a watermark favours it, added to the logits.",
    )  # fmt: skip
    disable_grammar_support: bool = setting(
        False, "DISABLE_GRAMMAR_SUPPORT", cast=flag,
        meaning="Refuse `grammar` and `response_format`.",
    )  # fmt: skip
    tool_call_parser: str | None = setting(
        None, "TOOL_CALL_PARSER", cast=one_of(*TOOL_CALL_PARSERS),
        meaning=f"How the model writes tool calls: {', '.join(TOOL_CALL_PARSERS)}. "
        "Unset: as the chat template says.",
    )  # fmt: skip
    allowed_image_domains: tuple[str, ...] = setting(
        (), "ALLOWED_IMAGE_DOMAINS", cast=hosts,
        meaning="Hosts that images in messages may be fetched from, separated by commas; "
        "`*.example.com` for all below one. Unset: data URLs only.",
    )  # fmt: skip
    max_image_fetch_size: int = setting(
        20_000_000, "MAX_IMAGE_FETCH_SIZE", cast=integer(1),
        meaning="Largest image file, in bytes, fetched or in a data URL (which PAYLOAD_LIMIT "
        "bounds, too).",
    )  # fmt: skip
    max_image_pixels: int = setting(
        2**24, "MAX_IMAGE_PIXELS", cast=integer(1, 2**28),
        meaning="Largest image, in pixels: its width times its height.",
    )  # fmt: skip
    max_images: int = setting(
        8, "MAX_IMAGES_PER_REQUEST", cast=integer(1, 1000),
        meaning="Most images in one request.",
    )  # fmt: skip
    payload_limit: int | None = setting(
        None, "PAYLOAD_LIMIT", cast=integer(1),
        meaning="Largest body, in bytes. Unset: SAGEMAKER_MAX_PAYLOAD_IN_MB, else 2000000, or 6 MB "
        "in a batch transform.",
    )  # fmt: skip
    max_payload_mb: int | None = setting(
        None, "SAGEMAKER_MAX_PAYLOAD_IN_MB", cast=integer(0, 1024),
        meaning="Largest body, in MB; set by batch transform jobs. 0: 100.",
    )  # fmt: skip
    is_batch: bool = setting(
        False, "SAGEMAKER_BATCH", cast=flag,
        meaning="Set by SageMaker in a batch transform job.",
    )  # fmt: skip
    batch_strategy: str | None = setting(
        None, "SAGEMAKER_BATCH_STRATEGY", cast=choice("single_record", "multi_record"),
        meaning="What /execution-parameters proposes. Unset: multi_record.",
    )  # fmt: skip
    max_transforms: int | None = setting(
        None, "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS", cast=integer(1, 1000),
        meaning="What /execution-parameters proposes. Unset: what the limits allow.",
    )  # fmt: skip
    messages_api_enabled: bool | None = setting(
        None, "MESSAGES_API_ENABLED", cast=flag,
        meaning="/invocations takes messages only (true), generate only (false), both (unset).",
    )  # fmt: skip
    system_prompt: str | None = setting(
        None, "SYSTEM_PROMPT", cast=text,
        meaning="First message of chats that have no system message of their own.",
    )  # fmt: skip
    api_key: str | None = setting(
        None, "API_KEY", cast=text, secret=True,
        meaning="Bearer token that clients must send (/ping, /health, /info, /metrics are open).",
    )  # fmt: skip
    cors_allow_origin: str = setting(
        "*", "CORS_ALLOW_ORIGIN", cast=text,
        meaning="Origin whose web pages may call the server from a browser; `*`: every origin.",
    )  # fmt: skip
    compute_type: str | None = setting(
        None, "COMPUTE_TYPE", cast=text,
        meaning="What the header x-compute-type says. Unset: cpu or cuda.",
    )  # fmt: skip
    otlp_endpoint: str | None = setting(
        None, "OTLP_ENDPOINT", cast=url,
        meaning="Collector for traces over OTLP/HTTP; port 4317 (gRPC's) is taken as 4318.",
    )  # fmt: skip
    otlp_service_name: str = setting(
        "text-generation-inference.router", "OTLP_SERVICE_NAME", cast=text,
        meaning="Name of this service in traces.",
    )  # fmt: skip
    bind_to_port: int | None = setting(
        None, "SAGEMAKER_BIND_TO_PORT", cast=integer(1, 65535),
        meaning="Port given by SageMaker; wins over PORT.",
    )  # fmt: skip
    port_by_user: int = setting(
        8080, "PORT", cast=integer(1, 65535),
        meaning="Port to listen on.",
    )  # fmt: skip
    host: str = setting(
        "0.0.0.0", "HOST", cast=text,
        meaning="Address to listen on.",
    )  # fmt: skip
    num_frontends: int = setting(
        1, "SAGEMAKER_MODEL_SERVER_WORKERS", "WORKERS", cast=integer(1, 64),
        meaning="HTTP processes; one is enough for most instances.",
    )  # fmt: skip
    lora_adapters: str | None = setting(
        None, "LORA_ADAPTERS", cast=text,
        meaning="LoRA adapters to serve: `name=folder` or Hub ids, with commas between.",
    )  # fmt: skip
    max_adapters_in_memory: int = setting(
        8, "SAGEMAKER_MAX_NUMBER_OF_ADAPTERS_IN_MEMORY", cast=integer(1, 1000),
        meaning="Adapters in memory at a time; others are loaded when they are used.",
    )  # fmt: skip
    is_multi_model: bool = setting(
        False, "SAGEMAKER_MULTI_MODEL", cast=flag,
        meaning="Serve the /models API of multi-model endpoints; set by SageMaker.",
    )  # fmt: skip
    load_timeout_s: int = setting(
        600, "SAGEMAKER_STARTUP_TIMEOUT", cast=integer(1, 86_400),
        meaning="Seconds that a model of a multi-model endpoint may take to load.",
    )  # fmt: skip
    has_sessions: bool = setting(
        False, "SAGEMAKER_ENABLE_STATEFUL_SESSIONS", cast=flag,
        meaning="Sticky sessions (NEW_SESSION and CLOSE on /invocations).",
    )  # fmt: skip
    sessions_lifetime_s: int = setting(
        1200, "SAGEMAKER_SESSIONS_EXPIRATION", cast=integer(1, 86_400),
        meaning="Seconds that a session lasts.",
    )  # fmt: skip
    sessions_path: str | None = setting(
        None, "SAGEMAKER_SESSIONS_PATH", cast=text,
        meaning="Folder with a file for each open session. Unset: one in the temporary folder.",
    )  # fmt: skip
    program: str | None = setting(
        None, "SAGEMAKER_PROGRAM", cast=text,
        meaning="File with the user's model_fn, predict_fn and so on. Unset: inference.py.",
    )  # fmt: skip
    submit_directory: str | None = setting(
        None, "SAGEMAKER_SUBMIT_DIRECTORY", cast=text,
        meaning="Folder of that file. Unset or no folder: code/ in the model's folder.",
    )  # fmt: skip
    default_accept: str = setting(
        "application/json", "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", cast=text,
        meaning="Content type of answers when the client names none.",
    )  # fmt: skip
    handler_workers: int = setting(
        1, "HANDLER_WORKERS", cast=integer(1, 64),
        meaning="Processes that run the user's code, each with its own model_fn.",
    )  # fmt: skip
    handler_concurrency: int | None = setting(
        None, "HANDLER_CONCURRENCY", cast=integer(1, 1024),
        meaning="Invocations at a time in one of them. Unset: 1 with a model_fn, else many.",
    )  # fmt: skip
    handler_timeout_s: int = setting(
        3600, "HANDLER_TIMEOUT", "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", cast=integer(1, 86_400),
        meaning="Seconds that user code may take for one invocation; then its process is replaced.",
    )  # fmt: skip
    drain_s: int = setting(
        25, "GRACEFUL_TERMINATION_TIMEOUT", cast=integer(0, 3600),
        meaning="Seconds that running requests get after SIGTERM (SageMaker kills after 30).",
    )  # fmt: skip
    log_level: str = setting(
        "info", "LOG_LEVEL", "SAGEMAKER_CONTAINER_LOG_LEVEL", cast=log_level,
        meaning="debug, info, warning or error.",
    )  # fmt: skip
    json_output: bool | None = setting(
        None, "JSON_OUTPUT", cast=flag,
        meaning="Log JSON lines. Unset: unless the output is a terminal.",
    )  # fmt: skip

    @property
    def port(self) -> int:
        """The port to listen on."""
        return self.bind_to_port or self.port_by_user

    @property
    def body_limit(self) -> int:
        """The largest request body, in bytes."""
        if self.payload_limit is not None:
            return self.payload_limit
        if self.max_payload_mb is not None:
            return (self.max_payload_mb or UNLIMITED_BATCH_MB) * 2**20
        return BATCH_MB * 2**20 if self.is_batch else PAYLOAD_BYTES

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Parse an environment. Raises ConfigError with every problem in it."""
        values: dict[str, Any] = {}
        problems = [_refusal(name) for name in REFUSED if environ.get(name)]
        for field in dataclasses.fields(cls):
            try:
                _read(field, environ, values)
            except ValueError as problem:
                problems.append(str(problem))
        settings = cls(**values)
        problems += _conflicts(settings)
        if problems:
            raise ConfigError(problems)
        return settings

    @property
    def has_model(self) -> bool:
        """Whether anything says where a model is, one that is named as embedding model aside."""
        return bool(self.model_id) or _holds_files(SAGEMAKER_MODEL_DIR)

    def model_source(self) -> str:
        """Where the model comes from. Raises ConfigError when nothing says so."""
        if self.model_id:
            return self.model_id
        if _holds_files(SAGEMAKER_MODEL_DIR):
            return str(SAGEMAKER_MODEL_DIR)
        raise ConfigError(
            [
                "HF_MODEL_ID is not set and /opt/ml/model holds no files: set HF_MODEL_ID to a "
                "Hub id (such as Qwen/Qwen2.5-0.5B-Instruct) or to a model's folder"
            ]
        )

    @property
    def is_embedding_task(self) -> bool:
        """Whether the one model that is named is the embedding model."""
        return self.task in EMBEDDING_TASKS and self.embedding_model_id is None

    def embedding_source(self) -> EmbeddingSource | None:
        """Where the embedding model comes from, if there is to be one. Raises ConfigError."""
        if self.is_embedding_task:
            return EmbeddingSource(self.model_source(), self.revision, "HF_MODEL_ID")
        if self.embedding_model_id is None:
            return None
        return EmbeddingSource(
            self.embedding_model_id, self.embedding_revision, "EMBEDDING_MODEL_ID"
        )


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _refusal(name: str) -> str:
    return f"{name}: not supported in this version ({REFUSED[name]}); unset it"


def _read(
    field: "dataclasses.Field[Any]", environ: Mapping[str, str], values: dict[str, Any]
) -> None:
    texts = {name: environ[name].strip() for name in field.metadata["names"] if environ.get(name)}
    texts = {name: value for name, value in texts.items() if value}
    if not texts:
        return
    parsed = {}
    for name, value in texts.items():
        try:
            parsed[name] = field.metadata["cast"](value)
        except ValueError as error:
            value_text = "the given value" if field.metadata["secret"] else repr(value)
            raise ValueError(f"{name}: {error}, not {value_text}") from None
    first, *others = parsed
    for other in others:
        if parsed[other] != parsed[first]:
            raise ValueError(f"{first} and {other} mean the same and differ; set one of them")
    values[field.name] = parsed[first]


def _conflicts(settings: Settings) -> list[str]:
    longest_input, longest = settings.max_input_tokens, settings.max_total_tokens
    if longest_input and longest and longest_input >= longest:
        return [
            f"MAX_INPUT_TOKENS ({longest_input}) must be less than MAX_TOTAL_TOKENS ({longest})"
        ]
    if settings.max_memory and (settings.data_parallel > 1 or (settings.tensor_parallel or 1) > 1):
        return ["MAX_MEMORY is for one copy of a model that is not split: unset DATA_PARALLEL and "
                "TENSOR_PARALLEL, or MAX_MEMORY"]  # fmt: skip
    capacity = settings.max_batch_total_tokens
    if longest and capacity and longest > capacity:
        return [f"MAX_TOTAL_TOKENS ({longest}) must not exceed MAX_BATCH_TOTAL_TOKENS ({capacity})"]
    step = settings.max_batch_prefill_tokens
    if step and capacity and step > capacity:
        return [
            f"MAX_BATCH_PREFILL_TOKENS ({step}) must not exceed MAX_BATCH_TOTAL_TOKENS ({capacity})"
        ]
    return []


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting as a person may see it: secrets masked."""

    name: str
    aliases: tuple[str, ...]
    value: str
    default: str
    meaning: str


def setting_names() -> set[str]:
    """Every variable that is a setting."""
    return {name for field in dataclasses.fields(Settings) for name in field.metadata["names"]}


def describe(settings: Settings) -> list[SettingRow]:
    """Every setting with its variables, its value and its default, secrets masked."""
    rows = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.metadata["secret"] and value is not None:
            value = "***"
        names = field.metadata["names"]
        rows.append(
            SettingRow(
                names[0], names[1:], _word(value), _word(field.default), field.metadata["meaning"]
            )
        )
    return rows


def _word(value: object) -> str:
    if value is None:
        return "unset"
    if isinstance(value, tuple):
        return ",".join(value) or "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)
