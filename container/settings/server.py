"""Settings of the HTTP server, of SageMaker, of user code, of logs and traces."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from container.settings.casts import (
    batch_strategy,
    flag,
    integer,
    log_level,
    pairs,
    seconds,
    text,
    url,
)
from container.settings.field import setting

PAYLOAD_BYTES = 25 * 2**20  # the most that SageMaker takes
# SageMaker's defaults for batch transform; a limit of 0 asks for chunked bodies of any length.
BATCH_MB, UNLIMITED_BATCH_MB = 6, 100


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The HTTP server."""

    payload_limit: int | None = setting(
        None, "PAYLOAD_LIMIT", cast=integer(1),
        meaning="Largest body, in bytes. Unset: SAGEMAKER_MAX_PAYLOAD_IN_MB, else 26214400 (25 MB, "
        "as SageMaker takes), or 6 MB in a batch transform.",
    )  # fmt: skip
    max_payload_mb: int | None = setting(
        None, "SAGEMAKER_MAX_PAYLOAD_IN_MB", cast=integer(0, 1024),
        meaning="Largest body, in MB; set by batch transform jobs. 0: 100.",
    )  # fmt: skip
    is_batch: bool = setting(
        False, "SAGEMAKER_BATCH", cast=flag,
        meaning="Set by SageMaker in a batch transform job.",
    )  # fmt: skip
    messages_api_enabled: bool | None = setting(
        None, "MESSAGES_API_ENABLED", cast=flag,
        meaning="/invocations takes messages only (true), generate only (false), both (unset).",
    )  # fmt: skip
    strict_model_names: bool = setting(
        False, "STRICT_MODEL_NAMES", cast=flag,
        meaning="Refuse any `model` in a body that is neither the served model nor an adapter. "
        "Without it, only names that are or were an adapter's, or resemble one, are refused.",
    )  # fmt: skip
    api_key: str | None = setting(
        None, "API_KEY", cast=text, secret=True,
        meaning="Bearer token that clients must send (/ping, /health, /info, /metrics are open).",
    )  # fmt: skip
    cors_allow_origin: str = setting(
        "*", "CORS_ALLOW_ORIGIN", cast=text,
        meaning="Origin whose web pages may call the server from a browser; `*`: every origin.",
    )  # fmt: skip
    has_ui: bool = setting(
        True, "UI", cast=flag,
        meaning="A page for browsers at / and /ui: chat, and the server's live numbers.",
    )  # fmt: skip
    compute_type: str | None = setting(
        None, "COMPUTE_TYPE", cast=text,
        meaning="Value of the header x-compute-type. Unset: cpu or cuda.",
    )  # fmt: skip
    bind_to_port: int | None = setting(
        None, "SAGEMAKER_BIND_TO_PORT", cast=integer(1, 65535),
        meaning="Port that SageMaker assigns; takes precedence over PORT.",
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
    drain_s: int = setting(
        25, "GRACEFUL_TERMINATION_TIMEOUT", cast=integer(0, 3600),
        meaning="Seconds that running requests get after SIGTERM (SageMaker kills after 30).",
    )  # fmt: skip
    heartbeat_timeout_s: int = setting(
        20, "HEARTBEAT_TIMEOUT", cast=integer(0, 3600),
        meaning="Seconds without a heartbeat after which a process is replaced (an HTTP process "
        "after 30 at least). 0: never.",
    )  # fmt: skip
    step_timeout_s: int = setting(
        300, "STEP_TIMEOUT", cast=integer(0, 86_400),
        meaning="Seconds that one step of the model may take before its process is replaced; raise "
        "it for long prompts on slow processors. 0: no limit.",
    )  # fmt: skip

    max_connections: int = setting(
        4096, "MAX_CONNECTIONS", cast=integer(16),
        meaning="Connections that each HTTP process holds. At the limit, a new one evicts an idle "
        "one of the address with the most; a few more are accepted for /ping.",
    )  # fmt: skip
    request_deadline: float | None = setting(
        None, "REQUEST_DEADLINE", cast=seconds,
        meaning="Seconds after which a request is answered with the text so far (finish reason "
        "`length`). Unset or 0: no limit. Without effect in a batch transform.",
    )  # fmt: skip
    stream_deadline: float | None = setting(
        None, "REQUEST_DEADLINE_STREAMED", cast=seconds,
        meaning="The same for streams. Unset: REQUEST_DEADLINE.",
    )  # fmt: skip

    @property
    def deadline_s(self) -> float:
        """Seconds that a whole answer may take; infinite without a limit."""
        return self.request_deadline or math.inf if not self.is_batch else math.inf

    @property
    def stream_deadline_s(self) -> float:
        """Seconds that a stream may take; infinite without a limit."""
        if self.stream_deadline is None or self.is_batch:
            return self.deadline_s
        return self.stream_deadline or math.inf

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


@dataclass(frozen=True, slots=True)
class SageMakerSettings:
    """SageMaker's batch transform, multi-model endpoints and sticky sessions."""

    batch_strategy: str | None = setting(
        None, "SAGEMAKER_BATCH_STRATEGY", cast=batch_strategy,
        meaning="Strategy that /execution-parameters proposes. Unset: multi_record.",
    )  # fmt: skip
    max_transforms: int | None = setting(
        None, "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS", cast=integer(1, 1000),
        meaning="Concurrency that /execution-parameters proposes. Unset: by the other limits.",
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


@dataclass(frozen=True, slots=True)
class HandlerSettings:
    """The user's code and the processes that run it."""

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
        meaning="Invocations at a time in one worker process. Unset: 1 with a model_fn, else "
        "many.",
    )  # fmt: skip
    handler_timeout_s: int = setting(
        3600, "HANDLER_TIMEOUT", "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", cast=integer(1, 86_400),
        wins="HANDLER_TIMEOUT",
        meaning="Seconds that user code may take for one invocation; then its process is replaced.",
    )  # fmt: skip
    handler_memory: int | None = setting(
        None, "HANDLER_MEMORY", cast=integer(64),
        meaning="Memory of one process with user code, in MiB, mapped files excepted; at more it "
        "is replaced. Unset: nine tenths of the machine's.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ObservabilitySettings:
    """Logs and traces."""

    otlp_endpoint: str | None = setting(
        None, "OTLP_ENDPOINT", cast=url,
        meaning="Collector for traces over OTLP/HTTP; port 4317 (gRPC's) becomes 4318.",
    )  # fmt: skip
    otlp_service_name: str = setting(
        "text-generation-inference.router", "OTLP_SERVICE_NAME", cast=text,
        meaning="Name of this service in traces.",
    )  # fmt: skip
    emf_namespace: str | None = setting(
        None, "EMF_NAMESPACE", cast=text,
        meaning="Namespace of CloudWatch metrics of tokens and times, which lines of the log carry "
        "in the embedded metric format. Unset: none.",
    )  # fmt: skip
    emf_dimensions: Mapping[str, str] | None = setting(
        None, "EMF_DIMENSIONS", cast=pairs,
        meaning="Dimensions of these metrics, as in EndpointName=chat; several after commas.",
    )  # fmt: skip
    log_level: str = setting(
        "info", "LOG_LEVEL", "SAGEMAKER_CONTAINER_LOG_LEVEL", cast=log_level, wins="LOG_LEVEL",
        meaning="debug, info, warning or error. LOG_LEVEL takes precedence: SageMaker's SDK "
        "always sets the other.",
    )  # fmt: skip
    json_output: bool | None = setting(
        None, "JSON_OUTPUT", cast=flag,
        meaning="Log JSON lines. Unset: unless the output is a terminal.",
    )  # fmt: skip
