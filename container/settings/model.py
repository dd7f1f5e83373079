"""Settings of the models that are served."""

from dataclasses import dataclass
from pathlib import Path

from container.errors import ConfigError
from container.settings.casts import (
    choice,
    dtype,
    factor,
    file,
    flag,
    integer,
    kv_cache_dtype,
    rope_scaling,
    text,
)
from container.settings.field import setting
from container.settings.process_env import SAGEMAKER_MODEL_DIR


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which model is served, and how it is loaded."""

    model_id: str | None = setting(
        None, "HF_MODEL_ID", "MODEL_ID", cast=text, wins="HF_MODEL_ID",
        meaning="Hub id or folder of the model. Unset: /opt/ml/model, when it holds files.",
    )  # fmt: skip
    revision: str | None = setting(
        None, "HF_MODEL_REVISION", "REVISION", cast=text, wins="HF_MODEL_REVISION",
        meaning="Branch, tag or commit on the Hub.",
    )  # fmt: skip
    hf_token: str | None = setting(
        None, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN", cast=text, secret=True,
        meaning="Access token for the Hub.",
    )  # fmt: skip
    task: str | None = setting(
        None, "HF_TASK", cast=text,
        meaning="Task of HF_MODEL_ID, as on the Hub. `feature-extraction`, `sentence-similarity`, "
        "`text-ranking`: embeddings and rerank. Unset: by its config.json.",
    )  # fmt: skip
    trust_remote_code: bool = setting(
        False, "HF_MODEL_TRUST_REMOTE_CODE", "TRUST_REMOTE_CODE", "HF_TRUST_REMOTE_CODE",
        cast=flag, wins="HF_MODEL_TRUST_REMOTE_CODE",
        meaning="Run Python code that comes with the model.",
    )  # fmt: skip
    tokenizer_config_path: str | None = setting(
        None, "TOKENIZER_CONFIG_PATH", cast=file,
        meaning="File with another chat template: a tokenizer_config.json or a .jinja file.",
    )  # fmt: skip
    dtype: str = setting(
        "auto", "DTYPE", cast=dtype,
        meaning="Number format of weights and cache. `auto`: bfloat16 where the processor "
        "computes with it, else float32, whose weights a CPU stores in bfloat16 if that is exact.",
    )  # fmt: skip
    kv_cache_dtype: str = setting(
        "auto", "KV_CACHE_DTYPE", cast=kv_cache_dtype,
        meaning="Number format of the KV cache. `auto`: as the weights; `fp8_e4m3fn` (or `fp8`), "
        "`fp8_e5m2`: twice as many tokens in the same memory, less exact.",
    )  # fmt: skip
    quantize: str | None = setting(
        None, "QUANTIZE", "HF_MODEL_QUANTIZE", cast=choice(
            "int8", "int4", "bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4", "eetq", "fp8",
            "gptq", "awq", "compressed-tensors", "exl2", "marlin",
        ), wins="HF_MODEL_QUANTIZE",
        meaning="Smaller weights. `int8`: eight bits, for any checkpoint, on a CPU too; "
        "`int4`: four bits in groups of 32, for any checkpoint, on a CPU only; TGI's other names "
        "need a GPU. A name that cannot work stops the start with the reason.",
    )  # fmt: skip
    compile: bool = setting(
        False, "COMPILE", cast=flag,
        meaning="Compile the decoder layers with torch.compile. The start takes minutes; "
        "TORCHINDUCTOR_CACHE_DIR caches the result.",
    )  # fmt: skip
    rope_scaling: str | None = setting(
        None, "ROPE_SCALING", cast=rope_scaling,
        meaning="linear: stretch the model's rotary positions over a longer context.",
    )  # fmt: skip
    rope_factor: float | None = setting(
        None, "ROPE_FACTOR", cast=factor,
        meaning="Factor by which the context is longer. Implies ROPE_SCALING=linear.",
    )  # fmt: skip
    lora_adapters: str | None = setting(
        None, "LORA_ADAPTERS", cast=text,
        meaning="LoRA adapters to serve: `name=folder` or Hub ids, separated by commas.",
    )  # fmt: skip
    max_adapters_in_memory: int = setting(
        8, "SAGEMAKER_MAX_NUMBER_OF_ADAPTERS_IN_MEMORY", cast=integer(1, 1000),
        meaning="Adapters in memory at a time; the rest are loaded on use.",
    )  # fmt: skip

    @property
    def has_model(self) -> bool:
        """Whether the environment or the model folder has a language model."""
        return bool(self.model_id) or _holds_files(SAGEMAKER_MODEL_DIR)

    def model_source(self) -> str:
        """Return the model's Hub id or folder. Raises ConfigError if there is none."""
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


# Tasks for which the model that HF_MODEL_ID names is an embedding or rerank model.
EMBEDDING_TASKS = ("feature-extraction", "sentence-similarity", "text-ranking")


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """The embedding or rerank model."""

    embedding_model_id: str | None = setting(
        None, "EMBEDDING_MODEL_ID", cast=text,
        meaning="Hub id or folder of an embedding or rerank model, served with the language model "
        "or alone.",
    )  # fmt: skip
    embedding_revision: str | None = setting(
        None, "EMBEDDING_MODEL_REVISION", cast=text,
        meaning="Branch, tag or commit of EMBEDDING_MODEL_ID on the Hub.",
    )  # fmt: skip
    max_batch_tokens: int | None = setting(
        None, "MAX_BATCH_TOKENS", cast=integer(1),
        meaning="Most tokens in one pass of the embedding model. Unset: 1024 on a CPU, else 16384.",
    )  # fmt: skip
    auto_truncate: bool = setting(
        False, "AUTO_TRUNCATE", cast=flag,
        meaning="Truncate texts that are too long for the embedding model, unless a request sets "
        "`truncate` to false.",
    )  # fmt: skip

    def is_for_task(self, task: str | None) -> bool:
        """Whether the only model is the embedding model, since it is for this HF_TASK."""
        return task in EMBEDDING_TASKS and self.embedding_model_id is None


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
