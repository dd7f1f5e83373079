"""What text-generation-inference's launcher variables mean here, for people who come from it.

Names and defaults are those of its launcher (launcher/src/main.rs at v3.3.7). A variable is a
setting (container.settings.settings), or it would change answers and stops the start (REFUSED
there), or it has no effect and is named in one line at start.
"""

from collections.abc import Mapping

# Defaults there, of the variables that are settings here.
DEFAULTS = {
    "MODEL_ID": "bigscience/bloom-560m",
    "REVISION": "main",
    "HF_TOKEN": "unset",
    "TRUST_REMOTE_CODE": "false",
    "TOKENIZER_CONFIG_PATH": "unset",
    "NUM_SHARD": "all visible GPUs",
    "DTYPE": "the model's",
    "QUANTIZE": "as config.json",
    "SPECULATE": "unset",
    "CUDA_GRAPHS": "1,2,4,8,16,32",
    "LORA_ADAPTERS": "unset",
    "ROPE_SCALING": "unset",
    "ROPE_FACTOR": "unset",
    "MAX_INPUT_TOKENS": "the model's context - 1",
    "MAX_TOTAL_TOKENS": "the model's context",
    "MAX_BATCH_PREFILL_TOKENS": "from the GPU's speed",
    "MAX_BATCH_TOTAL_TOKENS": "what fits",
    "MAX_BATCH_SIZE": "unset",
    "MAX_CONCURRENT_REQUESTS": "128",
    "MAX_CLIENT_BATCH_SIZE": "4",
    "MAX_STOP_SEQUENCES": "4",
    "MAX_BEST_OF": "2",
    "MAX_TOP_N_TOKENS": "5",
    "CUDA_MEMORY_FRACTION": "1.0",
    "PREFIX_CACHING": "1",
    "DISABLE_GRAMMAR_SUPPORT": "false",
    "WATERMARK_GAMMA": "0.5",
    "WATERMARK_DELTA": "2.0",
    "MAX_IMAGE_FETCH_SIZE": "1073741824",
    "PAYLOAD_LIMIT": "2000000",
    "API_KEY": "unset",
    "CORS_ALLOW_ORIGIN": "every origin",
    "OTLP_ENDPOINT": "unset",
    "OTLP_SERVICE_NAME": "text-generation-inference.router",
    "COMPUTE_TYPE": "gpu+optimized",
    "PORT": "3000 (8080 on SageMaker)",
    "GRACEFUL_TERMINATION_TIMEOUT": "90",
    "LOG_LEVEL": "info",
    "JSON_OUTPUT": "false",
}

_ONE_MACHINE = "the ranks of a model meet on their own machine"
_CONTINUOUS = "always on: decodes are scheduled first, and prompts are prefilled in chunks"
_NO_TELEMETRY = "the server sends no statistics"
_NO_TUNNEL = "there is no tunnel"

WITHOUT_EFFECT = {
    "SHARDED": "SM_NUM_GPUS is the number of GPUs",
    "MASTER_ADDR": _ONE_MACHINE,
    "MASTER_PORT": _ONE_MACHINE,
    "SHARD_UDS_PATH": _ONE_MACHINE,
    "WAITING_SERVED_RATIO": _CONTINUOUS,
    "MAX_WAITING_TOKENS": _CONTINUOUS,
    "PREFILL_CHUNKING": _CONTINUOUS,
    "ATTENTION": "the start chooses the fastest attention that passes its check",
    "USE_FLASH_ATTENTION": "the start chooses the fastest attention that passes its check",
    "DISABLE_CUSTOM_KERNELS": "the start disables kernels that fail their check",
    "TGI_WIGGLE_ROOM": "the start measures the largest step, and the cache gets the rest of a GPU",
    "VALIDATION_WORKERS": "long texts are tokenized in threads as needed",
    "ENABLE_PREFILL_LOGPROBS": "`decoder_input_details` always has the log-probabilities",
    "PROMETHEUS_PORT": "/metrics is on the main port",
    "LOG_COLORIZE": "logs have no colours",
    "USAGE_STATS": _NO_TELEMETRY,
    "NGROK": _NO_TUNNEL,
    "NGROK_AUTHTOKEN": _NO_TUNNEL,
    "NGROK_EDGE": _NO_TUNNEL,
    "AIP_HTTP_PORT": "this is no Vertex container",
    "AIP_HEALTH_ROUTE": "this is no Vertex container",
    "AIP_PREDICT_ROUTE": "this is no Vertex container",
}
# Container runtimes set HOSTNAME themselves, so it is not a wish; HOST is the address here.


def without_effect(environ: Mapping[str, str]) -> list[str]:
    """The variables in an environment that TGI knows and that have no effect here."""
    return [name for name in WITHOUT_EFFECT if environ.get(name, "").strip()]
