"""Environments that people bring: each documented variable with the values that its users have.

Those of TGI's launcher, of LMI containers, of the Hugging Face toolkit and SageMaker's inference
toolkit, and what SageMaker's SDK sends by itself. None stops the start.
"""

import json

import pytest

from container.settings.settings import Settings, describe, overridden_names

TGI = {
    "MODEL_ID": ["bigscience/bloom-560m", "/opt/ml/model", "s3-folder"],
    "HF_MODEL_ID": ["mistralai/Mistral-7B-Instruct-v0.2", "/opt/ml/model"],
    "REVISION": ["main", "refs/pr/3", "0123abc"],
    "HF_MODEL_REVISION": ["main"],
    "SHARDED": ["true", "false"],
    "NUM_SHARD": ["1", "2", "4", "8"],
    "SM_NUM_GPUS": [json.dumps(1), "4", "8", "all"],
    "QUANTIZE": [
        "awq", "compressed-tensors", "eetq", "exl2", "gptq", "marlin", "bitsandbytes",
        "bitsandbytes-nf4", "bitsandbytes-fp4", "fp8",
    ],
    "HF_MODEL_QUANTIZE": ["bitsandbytes", "gptq", "awq"],
    "SPECULATE": ["0", "2", "3"],
    "DTYPE": ["float16", "bfloat16"],
    "KV_CACHE_DTYPE": ["fp8_e4m3fn", "fp8_e5m2"],
    "TRUST_REMOTE_CODE": ["true", "false", "1", "True"],
    "HF_MODEL_TRUST_REMOTE_CODE": ["true", "True", json.dumps(True)],
    "LORA_ADAPTERS": ["a/b", "a/b@main", "name=/opt/ml/model/adapter,c/d"],
    "ROPE_SCALING": ["linear"],
    "ROPE_FACTOR": ["2.0", "4"],
    "HF_TOKEN": ["hf_abc"],
    "HUGGING_FACE_HUB_TOKEN": ["hf_abc"],
    "MAX_CONCURRENT_REQUESTS": ["128", "512"],
    "MAX_BEST_OF": ["2", "1"],
    "MAX_STOP_SEQUENCES": ["4", "12"],
    "MAX_TOP_N_TOKENS": ["5"],
    "MAX_CLIENT_BATCH_SIZE": ["4", "32"],
    "MAX_INPUT_TOKENS": ["1024", "4095"],
    "MAX_INPUT_LENGTH": [json.dumps(1024), "3072"],
    "MAX_TOTAL_TOKENS": ["2048", "4096"],
    "MAX_BATCH_PREFILL_TOKENS": ["4096", "16182"],
    "MAX_BATCH_TOTAL_TOKENS": ["8192", "32768"],
    "MAX_BATCH_SIZE": ["4", "64"],
    "WAITING_SERVED_RATIO": ["0.3", "1.2"],
    "MAX_WAITING_TOKENS": ["20"],
    "CUDA_GRAPHS": ["1,2,4,8,16,32", "0", "1, 2", "8"],
    "CUDA_MEMORY_FRACTION": ["1.0", "0.9", "1"],
    "VALIDATION_WORKERS": ["2"],
    "PAYLOAD_LIMIT": ["2000000", "10000000"],
    "MAX_IMAGE_FETCH_SIZE": ["1073741824"],
    "ENABLE_PREFILL_LOGPROBS": ["true"],
    "DISABLE_GRAMMAR_SUPPORT": ["false", "true"],
    "DISABLE_CUSTOM_KERNELS": ["false"],
    "WATERMARK_GAMMA": ["0.5"],
    "WATERMARK_DELTA": ["2.0", "2"],
    "API_KEY": ["secret"],
    "CORS_ALLOW_ORIGIN": ["*", "https://a.example"],
    "HOSTNAME": ["0.0.0.0", "ip-10-0-0-1"],
    "PORT": ["80", "3000", "8080"],
    "PROMETHEUS_PORT": ["9000"],
    "OTLP_ENDPOINT": ["http://localhost:4317"],
    "OTLP_SERVICE_NAME": ["text-generation-inference.router"],
    "JSON_OUTPUT": ["true", "false"],
    "LOG_LEVEL": [
        "info", "debug", "INFO", "warn", "error", "trace", "off",
        "info,text_generation_router=debug,h2=off", "text_generation_router=debug",
    ],
    "LOG_COLORIZE": ["true"],
    "USAGE_STATS": ["on", "off", "no-stack"],
    "MASTER_ADDR": ["localhost"],
    "MASTER_PORT": ["29500"],
    "SHARD_UDS_PATH": ["/tmp/text-generation-server"],
    "GRACEFUL_TERMINATION_TIMEOUT": ["90"],
    "ATTENTION": ["flashinfer", "flashdecoding", "paged"],
    "PREFIX_CACHING": ["1", "0", "true", "False"],
    "PREFILL_CHUNKING": ["1", "0"],
    "USE_FLASH_ATTENTION": ["true", "True"],
    "TGI_WIGGLE_ROOM": ["0.95"],
    "COMPUTE_TYPE": ["gpu+optimized"],
    "MESSAGES_API_ENABLED": ["true", "True", "false"],
    "HF_TASK": ["text-generation", "feature-extraction", "text2text-generation"],
    "HUGGINGFACE_HUB_CACHE": ["/data", "/tmp"],
    "HF_HUB_USER_AGENT_ORIGIN": ["aws:sagemaker:gpu-cuda:inference:tgi-native"],
    "HF_HUB_ENABLE_HF_TRANSFER": ["1"],
}  # fmt: skip
LMI = {
    "HF_REVISION": ["main"],
    "OPTION_ROLLING_BATCH": ["auto", "vllm", "lmi-dist", "disable"],
    "OPTION_MAX_ROLLING_BATCH_SIZE": ["256"],
    "OPTION_TENSOR_PARALLEL_DEGREE": ["max", "1"],
    "TENSOR_PARALLEL_DEGREE": ["max", "4"],
    "OPTION_DTYPE": ["fp16", "bf16", "auto"],
    "OPTION_QUANTIZE": ["awq", "fp8"],
    "OPTION_MAX_MODEL_LEN": ["4096"],
    "OPTION_GPU_MEMORY_UTILIZATION": ["0.9"],
    "OPTION_ENABLE_LORA": ["true"],
    "OPTION_TGI_COMPAT": ["true"],
    "OPTION_ENTRYPOINT": ["djl_python.huggingface"],
    "OPTION_MODEL_LOADING_TIMEOUT": ["1800"],
    "OPTION_PREDICT_TIMEOUT": ["240"],
    "OPTION_ENABLE_STATEFUL_SESSIONS": ["true"],
    "SERVING_JOB_QUEUE_SIZE": ["1000"],
    "SERVING_FAIL_FAST": ["true"],
    "ENABLE_CUDA_GRAPHS": ["true"],
    "SAGEMAKER_NUM_MODEL_WORKERS": ["1"],
    "SAGEMAKER_MAX_REQUEST_SIZE": ["67108864"],
    "MODEL_CACHE_ROOT": ["/opt/ml/model"],
    "ENDPOINT_SERVER_TIMEOUT": ["3600"],
}
TOOLKITS = {
    "HF_API_TOKEN": ["hf_abc"],
    "HF_TRUST_REMOTE_CODE": ["true", "True", "1"],
    "HF_OPTIMUM_BATCH_SIZE": ["1"],
    "HF_OPTIMUM_SEQUENCE_LENGTH": ["128"],
    "SAGEMAKER_BASE_DIR": ["/opt/ml"],
    "SAGEMAKER_PROGRAM": ["", "inference.py", "src/serve.py"],
    "SAGEMAKER_SUBMIT_DIRECTORY": ["", "/opt/ml/model/code", "file:///tmp/code", "s3://b/k"],
    "SAGEMAKER_CONTAINER_LOG_LEVEL": ["20", "10", "0", "30", "40", "50", "25", "INFO", "critical"],
    "SAGEMAKER_REGION": ["eu-west-1"],
    "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": ["application/json", "text/csv"],
    "SAGEMAKER_MODEL_SERVER_WORKERS": ["1", "4"],
    "SAGEMAKER_MODEL_SERVER_TIMEOUT": ["60"],
    "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": ["3600"],
    "SAGEMAKER_STARTUP_TIMEOUT": ["600", "3600"],
    "SAGEMAKER_MODEL_SERVER_VMARGS": ["-Xmx2g"],
    "SAGEMAKER_MAX_PAYLOAD_IN_MB": ["6", "100", "0"],
    "SAGEMAKER_BIND_TO_PORT": ["8081"],
    "SAGEMAKER_SAFE_PORT_RANGE": ["21000-21999"],
    "SAGEMAKER_HANDLER": ["handler.py"],
    "SAGEMAKER_MULTI_MODEL": ["true", "false"],
    "SAGEMAKER_BATCH": ["true"],
    "SAGEMAKER_BATCH_STRATEGY": ["SINGLE_RECORD", "MULTI_RECORD", "MultiRecord"],
    "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": ["1", "8"],
    "SAGEMAKER_ENABLE_LOAD_AWARE": ["1"],
    "SAGEMAKER_MAX_NUMBER_OF_ADAPTERS_IN_MEMORY": ["30"],
    "SAGEMAKER_ENABLE_STATEFUL_SESSIONS": ["true"],
    "SAGEMAKER_SESSIONS_EXPIRATION": ["1200"],
    "SAGEMAKER_SESSIONS_PATH": ["/dev/shm/sagemaker_sessions"],
    "SAGEMAKER_ENV": ["1"],
    "CA_REPOSITORY_ARN": ["arn:aws:codeartifact:eu-west-1:1:repository/a/b"],
}
VALUES = [
    (name, value)
    for table in (TGI, LMI, TOOLKITS)
    for name, values in table.items()
    for value in values
]


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_a_documented_value_is_read_and_shown(name: str, value: str) -> None:
    environ = {name: value}
    settings = Settings.from_environ(environ)
    assert describe(settings)
    assert overridden_names(environ) == []


def test_sizes_that_are_shown_can_be_given_back() -> None:
    settings = Settings.from_environ({"CUDA_GRAPHS": "1,2,4,8,16,32"})
    [shown] = [row.value for row in describe(settings) if row.name == "CUDA_GRAPHS"]
    assert Settings.from_environ({"CUDA_GRAPHS": shown}) == settings


@pytest.mark.parametrize(
    ("environ", "attribute", "expected", "ignored"),
    [
        ({"LOG_LEVEL": "debug", "SAGEMAKER_CONTAINER_LOG_LEVEL": "20"},
         "observability.log_level", "debug", ["SAGEMAKER_CONTAINER_LOG_LEVEL"]),
        ({"HF_MODEL_ID": "a/b", "MODEL_ID": "c/d"}, "model.model_id", "a/b", ["MODEL_ID"]),
        ({"HF_MODEL_REVISION": "x", "REVISION": "y"}, "model.revision", "x", ["REVISION"]),
        ({"SM_NUM_GPUS": "1", "NUM_SHARD": "4"}, "placement.num_gpus", 1, ["NUM_SHARD"]),
        ({"HF_MODEL_QUANTIZE": "gptq", "QUANTIZE": "awq"}, "model.quantize", "gptq", ["QUANTIZE"]),
        ({"HF_MODEL_TRUST_REMOTE_CODE": "true", "TRUST_REMOTE_CODE": "false"},
         "model.trust_remote_code", True, ["TRUST_REMOTE_CODE"]),
        ({"HANDLER_TIMEOUT": "5", "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "3600"},
         "handlers.handler_timeout_s", 5, ["SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS"]),
        ({"SM_NUM_GPUS": "1", "NUM_SHARD": "1"}, "placement.num_gpus", 1, []),
        ({"SM_NUM_GPUS": " ", "NUM_SHARD": "4"}, "placement.num_gpus", 4, []),
    ],
)  # fmt: skip
def test_of_two_names_of_a_setting_the_users_or_sagemakers_wins(
    environ: dict[str, str], attribute: str, expected: object, ignored: list[str]
) -> None:
    group, name = attribute.split(".")
    assert getattr(getattr(Settings.from_environ(environ), group), name) == expected
    assert overridden_names(environ) == ignored
