"""Causes as they read in the logs of containers; the more specific one comes first."""

import re

from sagemaker_deploy.diagnosis.rule import rule

IN_LOG = (
    rule(
        "architecture",
        r"exec format error|exec user process caused.*format",
        "the image is built for another processor architecture than the instance's",
        "build it with `docker buildx build --platform linux/amd64 --provenance=false` "
        "(linux/arm64 "
        "for Graviton), push it, and deploy again",
    ),
    rule(
        "entry point",
        r"""exec: "?serve"?: executable file not found|exec .*serve.*: (?:permission denied|no """
        r"""such"""
        r"""|not found)|unexpected argument 'serve'|unrecognized arguments: serve""",
        "the image does not start with the argument `serve`, with which SageMaker runs it",
        "give the image an executable `serve` on its PATH, or an entry point that takes that word",
    ),
    rule(
        "missing program",
        r"No such file or directory: '(?P<program>nginx|gunicorn|java|python3?)'",
        "the image lacks the program {program}",
        "install it in the image, or take an image that has it",
    ),
    rule(
        "driver",
        r"unsatisfied condition: cuda|NVIDIA driver on your system is too old|CUDA driver version "
        r"is insufficient|forward compatibility was attempted on non supported|no kernel image is "
        r"available",
        "the host's GPU driver does not fit the CUDA version of the image",
        "set `cuda:` to the image's CUDA version, or `ami:` to a host image whose driver has it",
    ),
    rule(
        "gpu memory",
        r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|No available memory "
        r"for the "
        r"cache",
        "the model and its KV cache do not fit the memory of the GPU",
        "take a larger or more GPUs (SM_NUM_GPUS), set QUANTIZE, or lower MAX_TOTAL_TOKENS and "
        "MAX_CONCURRENT_REQUESTS",
    ),
    rule(
        "shared memory",
        r"unable to (?:allocate|open) shared memory|insufficient shared memory|bus error",
        "the processes of the container ran out of shared memory (/dev/shm)",
        "take a larger instance, or fewer processes (SAGEMAKER_MODEL_SERVER_WORKERS=1)",
    ),
    rule(
        "memory",
        r"sent SIGKILL! Perhaps out of memory|oom-kill|Out of memory: Killed process|MemoryError|"
        r"Cannot allocate memory|DefaultCPUAllocator: can't allocate|SIGKILL|signal 9\b",
        "a process of the container was killed for want of memory",
        "take an instance with more memory, or a smaller or quantized model (DTYPE, QUANTIZE); of "
        "a component, raise component.memory_mb",
    ),
    rule(
        "disk",
        r"No space left on device|Disk quota exceeded|not enough (?:free )?disk space",
        "the disk is full",
        "set volume_gb, or take an instance with a disk of its own (g5, g6); put weights on S3 "
        "uncompressed rather than loading them from the Hub",
    ),
    rule(
        "requirements",
        r"ResolutionImpossible|pip could not install it|No matching distribution found for "
        r"(?P<package>\S+)|conflicting dependencies",
        "the packages of code/requirements.txt cannot be installed",
        "write ranges that contain the image's own versions, or leave its packages out; without a "
        "network put wheels into code/wheels",
    ),
    rule(
        "gated",
        r"GatedRepoError|Access to model .* is restricted|You are trying to access a gated repo|"
        r"401 Client Error|403 Forbidden: Please enable access|Invalid credentials in "
        r"Authorization",
        "the model on the Hub is gated or private, and the container has no valid token",
        "accept the model's licence and give the token (secrets: {HF_TOKEN: ...}), or put the "
        "files "
        "on S3 (model.data)",
    ),
    rule(
        "no network",
        r"Temporary failure in name resolution|Name or service not known|Network is unreachable|"
        r"LocalEntryNotFoundError|couldn't connect to '?https://huggingface|Failed to resolve "
        r"'huggingface|Connection to huggingface\.co timed out|outgoing traffic has been disabled",
        "the container cannot reach the Hub: its network has no way to the internet",
        "put the files on S3 (model.data), or give the subnets a NAT gateway; with "
        "network.isolated there is no network at all",
    ),
    rule(
        "unknown model",
        r"RepositoryNotFoundError|404 Client Error|is not a local folder and is not a valid model "
        r"identifier|Repository Not Found",
        "there is no model of this name on the Hub, or it is private",
        "correct HF_MODEL_ID (owner/name), or give a token for a private one",
    ),
    rule(
        "remote code",
        r"trust_remote_code=True|requires you to execute the (?:configuration|modeling) file|"
        r"contains custom code which must be executed",
        "the model has code of its own, which is run only if that is allowed",
        "read that code, then set HF_MODEL_TRUST_REMOTE_CODE=true",
    ),
    rule(
        "unsupported model",
        r"does not recognize this architecture|Unrecognized model in|is not supported by this "
        r"version|Unsupported model type",
        "the transformers version in the image does not know this model",
        "take an image with a newer transformers, or another model",
    ),
    rule(
        "wrong task",
        r"Task couldn't be inferenced from|HF_TASK.*(?:must be|is not|unknown)|Unknown task "
        r"(?P<task>\S+)|can only inference tasks from architectures",
        "the task does not follow from the model, or this server has no such task",
        "set HF_TASK to a task of this model, such as text-classification",
    ),
    rule(
        "missing files",
        r"does not appear to have a file named|config\.json(?:: | is )(?:missing|not found)|no "
        r"file "
        r"named (?:pytorch_model|model)|no \S*safetensors|holds no model|Please provide a model_fn|"
        r"Error no file named|FileNotFoundError:.*/opt/ml/model",
        "files of the model are missing under /opt/ml/model",
        "pack config.json, the tokenizer and the weights at the top of the archive, and check the "
        "prefix of model.data",
    ),
    rule(
        "user code",
        r"ModuleNotFoundError: No module named '(?P<module>[^']+)'|ImportError: cannot import name",
        "the code imports a package that the image does not have",
        "add it to code/requirements.txt, beside inference.py",
    ),
    rule(
        "port",
        r"Address already in use|Connection in use|is port \d+ taken|Errno 98",
        "the port is taken by another process of the container",
        "start one server only, on 8080 or SAGEMAKER_BIND_TO_PORT; leave PORT out",
    ),
    rule(
        "wrong port",
        r"(?:Running on|Listening at:?|Uvicorn running on) http://(?P<address>(?:127\.0\.0\.1|"
        r"localhost):\d+|[\d.]+:(?!8080)\d+)",
        "the server listens on {address}, and SageMaker calls port 8080 from outside",
        "listen on 0.0.0.0, port 8080, or on SAGEMAKER_BIND_TO_PORT where it is set",
    ),
    rule(
        "permissions in the container",
        r"PermissionError: \[Errno 13\]|Read-only file system|No usable temporary directory",
        "the container writes where it may not: /opt/ml/model is read-only",
        "write to the temporary folder: set HF_HOME and TMPDIR to a folder below /tmp",
    ),
    rule(
        "setting",
        r"^error: (?P<setting>[A-Z][A-Z0-9_]+)\b|exit code 2: (?P<reason>.+)",
        "a variable of the container has a wrong value",
        "correct it as the line says; docs/configuration.md has the variables",
    ),
    rule(
        "own report",
        r"the container ends with exit code (?P<code>\d+): (?P<reason>.+)",
        "{reason}",
        "do as that line says; the lines before it have the details",
    ),
)

# Our own stages, and lines of others that say that weights are being read.
LOADING = re.compile(
    r"loading (?:checkpoint|weights|the model|model)|Loading safetensors|Fetching \d+ files|"
    r"Downloading|Packing|compiling|warm(?:ing)? ?up|Waiting for shard to be ready",
    re.IGNORECASE,
)
